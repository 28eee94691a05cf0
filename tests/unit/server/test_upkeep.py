"""Background work on inverted files: in small pieces, between which anything may happen to the bank."""

from __future__ import annotations

from collections.abc import Callable, Generator

import numpy as np
import pytest

from recollect_server.domain.arrays import DenseArray, from_float32
from recollect_server.domain.eviction import ByIds, Everything, Oldest
from recollect_server.domain.spec import Dtype, IndexChoice
from recollect_server.domain.steps import run_through
from recollect_server.engine import kernels, reasons, upkeep
from recollect_server.engine.kmeans import lists_for
from tests.unit.server.indexed_bank import DIM, IndexedBank, Mixture

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")


def small_slices(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Many turns where there would be one."""
    monkeypatch.setattr(upkeep, "STEP", step)
    monkeypatch.setattr(upkeep, "SLICE", 4 * step)


def add_some(bank: IndexedBank, made: Mixture) -> None:
    bank.add(bank.draw(made, 37))


def grow(bank: IndexedBank, made: Mixture) -> None:
    if bank.ids.size < 6000:
        bank.add(bank.draw(made, 500))


def evict_some(bank: IndexedBank, made: Mixture) -> None:
    bank.evict(ByIds(bank.ids[5::50]))
    bank.add(bank.draw(made, 60))


def evict_the_oldest(bank: IndexedBank, made: Mixture) -> None:
    bank.evict(Oldest(40))
    bank.add(bank.draw(made, 40))


def begin_anew(bank: IndexedBank, made: Mixture) -> None:
    bank.evict(Everything())
    bank.add(bank.draw(made, 2000))


DOINGS: list[Callable[[IndexedBank, Mixture], None]] = [
    add_some,
    grow,
    evict_some,
    evict_the_oldest,
    begin_anew,
]


@pytest.mark.parametrize("doing", DOINGS)
def test_anything_may_happen_between_two_slices(
    doing: Callable[[IndexedBank, Mixture], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What happens to a bank while its lists are made, or judged, is not in them."""
    small_slices(monkeypatch, 150_000)
    made, bank = Mixture(), IndexedBank(8000)
    bank.add(bank.draw(made, 3000))
    turns = 0
    for _ in range(60):
        run_through(bank.bank.search(bank.draw(made, 32), 10))
        for _ in range(3):
            if bank.bank.upkeep_work:
                run_through(bank.bank.upkeep())
                turns += 1
        if turns % 4 == 0:
            doing(bank, made)
        assert bank.check(bank.draw(made, 4)) >= 0.5
        bank.check(bank.draw(made, 2), exact=True)
    assert turns > 20
    monkeypatch.undo()
    bank.read(made)
    assert bank.answers == "ivf", bank.bank.index_state
    assert bank.check(bank.draw(made, 300)) >= 0.93


@pytest.mark.parametrize("heads", [1, 3])
def test_a_slice_is_bounded(heads: int) -> None:
    """Background work holds the device for long, and every tenant's calls wait behind it."""
    made, bank = Mixture(), IndexedBank(12_000, heads=heads)
    bank.add(bank.draw(made, 12_000))
    for _ in range(60):
        run_through(bank.bank.search(bank.draw(made, 64), 10))
        while bank.bank.upkeep_work:
            steps, done = bank.bank.upkeep(), [0]
            try:
                next(steps)
                while True:
                    done.append(steps.send(1))
            except StopIteration:
                pass
            assert max(done) <= 1.5 * upkeep.STEP
            assert sum(done) <= upkeep.SLICE + 1.5 * upkeep.STEP
    assert bank.answers == "ivf"


def test_a_slice_ends_after_the_time_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a machine is slower than work is estimated, or calls are short, they wait for a whole slice."""
    now_s = 0.0
    work = upkeep.Index._work

    def slowly(index: upkeep.Index) -> int:
        nonlocal now_s
        now_s += 0.001
        return work(index)

    monkeypatch.setattr(upkeep.Index, "_work", slowly)
    monkeypatch.setattr("recollect_server.engine.upkeep.time.perf_counter", lambda: now_s)
    monkeypatch.setattr(upkeep, "STEP", 100_000)
    made, bank = Mixture(), IndexedBank(4000)
    bank.add(bank.draw(made, 4000))
    for _ in range(8):
        run_through(bank.bank.search(bank.draw(made, 64), 10))
    for seconds, steps in ((0.0, 0), (0.0005, 1), (0.0035, 4)):
        before_s = now_s
        assert run_through(bank.bank.upkeep(seconds=seconds))
        assert now_s - before_s == pytest.approx(0.001 * steps)


def test_a_turn_that_is_given_up() -> None:
    """A server that drains, or a namespace that goes, closes the steps: what was begun is then half done."""
    made, bank = Mixture(), IndexedBank(6000)
    bank.add(bank.draw(made, 6000))
    for _ in range(8):
        run_through(bank.bank.search(bank.draw(made, 64), 10))
    for pauses in (1, 2, 5, 9):
        steps = bank.bank.upkeep()
        next(steps)
        for _ in range(pauses):
            try:
                steps.send(1)
            except StopIteration:
                break
        steps.close()
        assert bank.check(bank.draw(made, 20)) >= 0.5
    bank.trained(made)
    assert bank.check(bank.draw(made, 200)) >= 0.93


def test_a_bank_that_grows_unread_keeps_its_lists() -> None:
    """Lists that nobody asked since they were judged are thrown away as useless when there are too few."""
    made, bank = Mixture(), IndexedBank(40_000)
    bank.add(bank.draw(made, 2000))
    bank.trained(made)
    for _ in range(9):
        bank.add(bank.draw(made, 2000))
        bank.upkeep()
    assert bank.answers == "ivf", bank.bank.index_state
    bank.read(made, 5)
    assert bank.answers == "ivf", bank.bank.index_state
    assert bank.check(bank.draw(made, 200)) >= 0.9


def test_lists_that_were_of_no_use_are_tried_again() -> None:
    """A bank whose first keys had no clusters is searched exactly for ever."""
    rng = np.random.default_rng(0)
    made, bank = Mixture(noise=0.2), IndexedBank(3000, recall=0.99)
    keys = rng.standard_normal((1, 3000, DIM)).astype(np.float32)
    bank.add(from_float32(keys, Dtype.FLOAT32))
    for _ in range(30):
        q = from_float32(rng.standard_normal((1, 64, DIM)).astype(np.float32), Dtype.FLOAT32)
        run_through(bank.bank.search(q, 30))
        bank.upkeep()
    for _ in range(30):
        bank.add(bank.draw(made, 600))
        bank.read(made, 2)
    assert bank.answers == "ivf", bank.bank.index_state
    assert bank.check(bank.draw(made, 200)) >= 0.97


def test_work_ends() -> None:
    """A bank that nobody writes or reads has background work for ever."""
    made, bank = Mixture(), IndexedBank(4000)
    bank.add(bank.draw(made, 4000))
    wanted = [bank.bank.upkeep_work]  # nobody has read
    bank.trained(made)
    wanted.append(bank.bank.upkeep_work)
    bank.add(bank.draw(made, 100))
    wanted.append(bank.bank.upkeep_work)  # so few are searched as they are
    bank.add(bank.draw(made, upkeep.PENDING_MIN))
    wanted.append(bank.bank.upkeep_work)
    lists = bank.bank.index_state.lists
    bank.upkeep()
    bank.evict(Everything())
    wanted.append(bank.bank.upkeep_work)
    assert wanted == [0, 0, 0, (100 + upkeep.PENDING_MIN) * lists * DIM, 0]


def test_comparing_takes_a_small_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searching exactly, to know the recall, takes longer than the searches do."""
    made, bank = Mixture(), IndexedBank(8000)
    bank.add(bank.draw(made, 8000))
    bank.trained(made)
    index = bank.store._index
    assert index is not None
    searched = compared = 0
    for _ in range(200):
        steps = bank.bank.search(bank.draw(made, 16), 10)
        searched += bank.bank.search_work(16)
        run_through(steps)
        while bank.bank.upkeep_work:
            turn = bank.bank.upkeep()
            try:
                next(turn)
                while True:
                    compared += turn.send(1)
            except StopIteration:
                pass
    assert 0 < compared <= 0.06 * searched


def test_a_cleared_bank_forgets_its_index() -> None:
    """What lists were made for is gone, and they are still there."""
    made, bank = Mixture(), IndexedBank(4000)
    bank.add(bank.draw(made, 4000))
    bank.trained(made)
    index = bank.store._index
    assert index is not None
    before = index.bytes
    bank.bank.clear()
    assert bank.store.index_state.index == "exact"
    assert bank.store._index is not None
    assert bank.store._index.bytes == 0 < before


@pytest.mark.parametrize(("entries", "lists"), [(1, 4), (1024, 128), (65_536, 1024), (1 << 20, 4096)])
def test_lists_for(entries: int, lists: int) -> None:
    """There are so few lists that each is long, or so many that to choose takes long."""
    assert lists_for(entries) == lists


def test_it_is_said_what_makes_a_bank_slow_for_a_while() -> None:
    """A reader cannot tell why a bank that has just been filled is slow."""
    made, bank = Mixture(), IndexedBank(30_000)
    bank.add(bank.draw(made, 4000))
    bank.trained(made)
    assert not bank.bank.index_state.reason
    bank.add(bank.draw(made, upkeep.BEHIND + 1000))
    state = bank.bank.index_state
    assert (state.index, state.reason) == ("ivf", reasons.BEING_FILLED)
    bank.upkeep()
    assert bank.bank.index_state.reason == reasons.BEING_JUDGED
    bank.read(made, 10)
    assert not bank.bank.index_state.reason


def test_the_reason_is_said_while_there_is_no_file() -> None:
    """A user cannot tell why reads of a namespace that asked for lists are exact."""
    made, bank = Mixture(), IndexedBank(2000, index=IndexChoice.AUTO)
    assert bank.bank.index_state.reason
    bank.add(bank.draw(made, 2000))
    bank.read(made, 3)
    assert bank.answers == "exact"
    assert "too few" in bank.bank.index_state.reason


def test_nothing_is_learnt_from_entries_that_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where entries move in every turn, hits are of other slots: a recall is told that nobody measured."""
    made, bank = Mixture(), IndexedBank(4000)
    bank.add(bank.draw(made, 4000))
    bank.trained(made)
    before = bank.bank.index_state
    monkeypatch.setattr(upkeep, "STEP", 50_000)
    monkeypatch.setattr(upkeep, "SLICE", 50_000)
    for _ in range(100):
        run_through(bank.bank.search(bank.draw(made, 64), 10))
        bank.evict(ByIds(bank.ids[3:4]))
        bank.add(bank.draw(made, 1))
        run_through(bank.bank.upkeep())
    after = bank.bank.index_state
    assert (after.index, after.probes, after.sampled) == ("ivf", before.probes, before.sampled)
    assert bank.check(bank.draw(made, 100)) >= 0.9


def test_recall_is_told_once_and_as_it_was() -> None:
    """Metrics count a comparison twice, or tell a running average in place of what was found."""
    made, bank = Mixture(), IndexedBank(4000)
    bank.add(bank.draw(made, 4000))
    bank.trained(made)
    told = [bank.bank.untold_recall()]
    for _ in range(40):
        bank.read(made, 4)
        bank.upkeep()
        told.append(bank.bank.untold_recall())
    state = bank.bank.index_state
    assert sum(queries for queries, _ in told) == state.sampled > 0
    np.testing.assert_allclose(sum(queries * recall for queries, recall in told), state.found)
    assert all(0 <= recall <= 1 for _, recall in told)
    assert bank.bank.untold_recall() == (0, 0.0)


def test_entries_that_score_alike_are_as_good_as_each_other() -> None:
    """Of keys that score alike others are found than by exact search: lists are given up for nothing."""
    made, bank = Mixture(), IndexedBank(8000)

    def signs(size: int) -> DenseArray:
        return from_float32(np.sign(bank.draw(made, size).float32()), Dtype.FLOAT32)

    bank.add(signs(8000))
    for _ in range(80):
        run_through(bank.bank.search(signs(64), 10))
        bank.upkeep()
    state = bank.bank.index_state
    assert state.index == "ivf"
    assert state.sampled > 0
    assert state.found / state.sampled >= 0.95
    assert bank.check(signs(200)) >= 0.95


@pytest.mark.parametrize("queries", [1, 4, 64])
def test_every_head_is_compared(monkeypatch: pytest.MonkeyPatch, queries: int) -> None:
    """Heads use up what may be spent on comparing before others: these never learn that they find less."""
    made, bank = Mixture(), IndexedBank(8000, heads=3)
    bank.add(bank.draw(made, 8000))
    bank.trained(made)
    compared, compare = [0] * bank.heads, upkeep.Index._compare

    def counted(index: upkeep.Index, head: int) -> Generator[int, None, None]:
        compared[head] += 1
        return compare(index, head)

    monkeypatch.setattr(upkeep.Index, "_compare", counted)
    bank.read(made, 400, queries=queries)
    assert min(compared) > 0.6 * max(compared), compared


@pytest.mark.parametrize("evicts", ["one that is in the midst", "the oldest"])
def test_recall_is_of_entries_that_stay(monkeypatch: pytest.MonkeyPatch, evicts: str) -> None:
    """Entries that move or go while a search is compared count as not found: the recall told is wrong."""
    made, bank = Mixture(), IndexedBank(4000)
    bank.add(bank.draw(made, 4000))
    bank.trained(made)
    small_slices(monkeypatch, 20_000)
    for turns in range(0, 300, 4):
        for _ in range(40):
            run_through(bank.bank.search(bank.draw(made, 64), 10))
        before = bank.bank.index_state
        for turn in range(1000):
            if turn == turns:
                bank.evict(Oldest(1600) if evicts == "the oldest" else ByIds(bank.ids[1:2]))
            if not bank.bank.upkeep_work:
                break
            run_through(bank.bank.upkeep())
        after = bank.bank.index_state
        bank.add(bank.draw(made, 4000 - bank.ids.size))
        assert after.found - before.found >= 0.8 * (after.sampled - before.sampled), turns
