"""Lists that are in use, while others are made in the background: these take long where a bank is large."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from recollect_server.domain.steps import run_through
from recollect_server.engine import kernels, reasons, upkeep
from recollect_server.engine.ivf import InvertedFile
from tests.unit.server.indexed_bank import DIM, IndexedBank, Mixture

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")

ADDED = 64
SLICE = 3000 * ADDED * DIM
"""So much at a time that making new lists takes a hundred turns."""


class Growing:
    """A bank whose lists are too few by now, so that others are being made while it is written to and read.

    Args:
        heads: Hkv.
        entries: As these begin to be made; the lists in use are of 2,000.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, heads: int, entries: int) -> None:
        self.made, self.bank = Mixture(), IndexedBank(40_000, heads=heads)
        self.bank.add(self.bank.draw(self.made, 2000))
        self.bank.trained(self.made)
        self.bank.add(self.bank.draw(self.made, entries - 2000))
        monkeypatch.setattr(upkeep, "STEP", heads * SLICE // 4)
        monkeypatch.setattr(upkeep, "SLICE", heads * SLICE)
        self._catch_up()

    @property
    def files(self) -> list[InvertedFile]:
        """That are in use."""
        index = self.bank.store._index
        assert index is not None
        return [file for file in index._files if file is not None]

    @property
    def are_being_made(self) -> bool:
        """Whether new ones are."""
        return self.bank.bank.index_state.reason == reasons.BEING_MADE

    def step(self) -> None:
        """What a job does at a time, and a slice after each of its calls."""
        self.bank.add(self.bank.draw(self.made, ADDED))
        self.turn()
        run_through(self.bank.bank.search(self.bank.draw(self.made, 32), 10))
        self.turn()

    def turn(self) -> None:
        """A slice of background work."""
        if self.bank.bank.upkeep_work:
            run_through(self.bank.bank.upkeep())

    def _catch_up(self) -> None:
        for _ in range(1000):
            run_through(self.bank.bank.search(self.bank.draw(self.made, 32), 10))
            self.turn()
            if self.are_being_made and all(len(file.pending) < upkeep.PENDING_MIN for file in self.files):
                return
        raise AssertionError("no new lists are made")


@pytest.mark.parametrize("heads", [1, 3])
def test_what_is_added_goes_into_lists_in_use(monkeypatch: pytest.MonkeyPatch, heads: int) -> None:
    """Every query looks at all that was added since new lists were begun: a job slows down more and more."""
    growing = Growing(monkeypatch, heads=heads, entries=9000)
    before, waiting = growing.bank.ids.size, 0
    while growing.are_being_made:
        growing.step()
        waiting = max(waiting, *(len(file.pending) for file in growing.files))
        assert growing.bank.ids.size < 40_000
    assert growing.bank.ids.size > before + 6 * upkeep.PENDING_MIN
    assert waiting <= 3 * upkeep.PENDING_MIN
    assert growing.bank.check(growing.bank.draw(growing.made, 300)) >= 0.93


def test_lists_in_use_are_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank that grows while new lists are made is looked into ever farther: a job takes twice as long."""
    judged: list[InvertedFile] = []
    judge = upkeep.Index._judge

    def noting(index: upkeep.Index, head: int, file: InvertedFile) -> Generator[int, None, tuple[int, float]]:
        judged.append(file)
        return judge(index, head, file)

    growing = Growing(monkeypatch, heads=1, entries=9000)
    monkeypatch.setattr(upkeep.Index, "_judge", noting)
    (old,) = growing.files
    entries = 9000
    while growing.are_being_made:
        if growing.bank.ids.size < 2 * 9000:
            growing.bank.add(growing.bank.draw(growing.made, 128))
        growing.step()
        if growing.are_being_made:
            entries = growing.bank.ids.size
    (new,) = growing.files
    assert entries >= 1.5 * 9000
    assert old is not new
    assert old in judged
    assert new in judged
    assert growing.bank.check(growing.bank.draw(growing.made, 300)) >= 0.93


def test_a_bank_that_grows_is_judged_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls look several times as far as they need to, each time that a bank has grown by half."""
    doubted: list[float] = []
    aim = InvertedFile._aim

    def noting(file: InvertedFile, recall: float, *, farther: float = 1.0) -> None:
        if farther > 1:
            doubted.append(farther)
        aim(file, recall, farther=farther)

    made, bank = Mixture(), IndexedBank(40_000)
    bank.add(bank.draw(made, 4000))
    bank.trained(made)
    monkeypatch.setattr(InvertedFile, "_aim", noting)
    for _ in range(20):
        bank.add(bank.draw(made, upkeep.PENDING_MIN))
        bank.read(made, 4)  # so many searches are enough to compare
    assert not doubted


def test_queries_that_judged_lists_in_use_judge_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are none left to judge the new lists by, so these are given up as of no use."""
    growing = Growing(monkeypatch, heads=1, entries=9000)
    judge = upkeep.Index._judge

    def judge_both(
        index: upkeep.Index, head: int, file: InvertedFile
    ) -> Generator[int, None, tuple[int, float]]:
        if file is index._growing:
            yield from index._compare(head)
        return (yield from judge(index, head, file))

    monkeypatch.setattr(upkeep.Index, "_judge", judge_both)
    lists = growing.bank.bank.index_state.lists
    while growing.are_being_made:
        growing.turn()  # nobody asks meanwhile
    assert growing.bank.bank.index_state.lists > lists


def test_lists_that_are_replaced_are_judged_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found out of lists that are gone is taken for that of new ones, which may be given up."""
    growing = Growing(monkeypatch, heads=1, entries=9000)
    settled: list[InvertedFile] = []
    settle, judge = InvertedFile.settle, upkeep.Index._judge

    def noting(file: InvertedFile, recall: float) -> None:
        settled.append(file)
        settle(file, recall)

    def judge_both(
        index: upkeep.Index, head: int, file: InvertedFile
    ) -> Generator[int, None, tuple[int, float]]:
        told = yield from judge(index, head, file)
        if file is index._growing:  # at its end, those in use begin to be judged once more
            queries = growing.made.draw(32)
            for _ in range(8):
                index._samples[head].add(queries.raw[0], 10, dtype=queries.dtype)
            index._jobs["duty"] = index._compare(head)
            next(index._jobs["duty"])
        return told

    monkeypatch.setattr(upkeep.Index, "_judge", judge_both)
    (old,) = growing.files
    while growing.are_being_made:
        growing.step()
    monkeypatch.setattr(InvertedFile, "settle", noting)
    for _ in range(40):
        growing.step()
    assert old not in growing.files
    assert old not in settled
