"""A bank whose text changes: what lists do not know of is found all the same."""

from __future__ import annotations

import numpy as np
import pytest

from recollect_server.domain.eviction import ByIds, Oldest
from recollect_server.domain.steps import run_through
from recollect_server.engine import kernels, reasons, scan, upkeep
from tests.unit.server.indexed_bank import IndexedBank, Mixture

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")


def test_keys_that_drift() -> None:
    """Keys of another mixture than lists were made for are found no more, or looked for nearly everywhere."""
    bank = IndexedBank(4000)
    bank.add(bank.draw(Mixture(0), 4000))
    bank.trained(Mixture(0))
    for seed in range(1, 4):
        made = Mixture(seed)
        for _ in range(16):
            bank.add(bank.draw(made, 250))
            bank.read(made, 3)
        bank.read(made)
        recall = bank.check(bank.draw(made, 300))
        state = bank.bank.index_state
        assert recall >= 0.93 if state.index == "ivf" else (recall == 1.0 and state.reason), state


@pytest.mark.parametrize("size", [64, 250, 600])
def test_recall_while_keys_change(size: int) -> None:
    """The first calls after a change of text do not find it: lists do not say where its keys are."""
    bank = IndexedBank(6000)
    bank.add(bank.draw(Mixture(0), 6000))
    bank.trained(Mixture(0))
    said = set()
    for seed in (1, 2):
        made = Mixture(seed)
        for _ in range(6000 // size):
            bank.add(bank.draw(made, size))
            assert bank.check(bank.draw(made, 100)) >= 0.93, bank.bank.index_state
            bank.read(made, 1)
            said.add(bank.bank.index_state.reason)
    assert reasons.STRANGERS in said


def test_queries_that_choose_too_many_lists_are_answered_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries of another text look into nearly all lists, which takes longer than exact search."""
    bank = IndexedBank(6000)
    bank.add(bank.draw(Mixture(0), 6000))
    bank.trained(Mixture(0))
    bank.evict(ByIds(bank.ids[100:200]))  # two segments, and some that are not in lists yet
    bank.add(bank.draw(Mixture(1), 150))
    other = Mixture(2)
    assert min(bank.check(bank.draw(other, 200)) for _ in range(3)) < 1.0
    monkeypatch.setattr("recollect_server.engine.ivf.exact_work", lambda *_: 1)
    assert [bank.check(bank.draw(other, 200)) for _ in range(3)] == [1.0] * 3
    queries = bank.draw(other, 200)
    steps, pauses = bank.bank.search(queries, 10), 0
    try:
        next(steps)
        while True:
            steps.send(1)
            pauses += 1
    except StopIteration as finished:
        by_small_steps = finished.value
    assert pauses > 6000 // scan.ROWS_MIN
    at_once = run_through(bank.bank.search(queries, 10))
    np.testing.assert_array_equal(by_small_steps.slots, at_once.slots)


def test_strangers_leave_and_move_as_all_entries() -> None:
    """Entries that are in no list are found where others lie now, or after they are gone."""
    bank = IndexedBank(6000)
    bank.add(bank.draw(Mixture(0), 6000))
    bank.trained(Mixture(0))
    bank.add(bank.draw(Mixture(1), 600))
    bank.upkeep()
    index = bank.store._index
    assert index is not None
    file = index._files[0]
    assert file is not None
    assert len(file.strangers.slots) == 600
    bank.evict(ByIds(bank.ids[::3]))
    bank.add(bank.draw(Mixture(0), 1800))
    assert bank.check(bank.draw(Mixture(1), 100)) >= 0.93
    bank.upkeep()
    bank.add(bank.draw(Mixture(0), 5500))
    assert not len(file.strangers.slots)
    assert bank.check(bank.draw(Mixture(0), 100)) >= 0.93


def test_strangers_that_were_evicted_do_not_count() -> None:
    """In a ring that is never full, lists are made anew for strangers of long ago."""
    bank = IndexedBank(20_000)
    bank.add(bank.draw(Mixture(0), 6000))
    bank.trained(Mixture(0))
    index = bank.store._index
    assert index is not None
    file = index._files[0]
    assert file is not None
    bank.add(bank.draw(Mixture(1), 600))
    bank.upkeep()
    bank.add(bank.draw(Mixture(0), 3000))
    bank.evict(Oldest(6300))
    bank.add(bank.draw(Mixture(0), 600))
    bank.upkeep()
    assert len(file.strangers.slots) == 300
    assert bank.check(bank.draw(Mixture(1), 100)) >= 0.93
    bank.evict(Oldest(300))
    bank.add(bank.draw(Mixture(0), 600))
    bank.upkeep()
    assert not len(file.strangers.slots)
    assert bank.check(bank.draw(Mixture(0), 100)) >= 0.93


def test_lists_given_up_as_a_text_begins_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries of a new text have lists given up before many of its keys are there: for four turns of it."""
    bank = IndexedBank(12_000)
    bank.add(bank.draw(Mixture(0), 12_000))
    bank.trained(Mixture(0))
    bank.add(bank.draw(Mixture(1), upkeep.PENDING_MIN))
    with monkeypatch.context() as patch:
        patch.setattr(upkeep.Index, "_is_useful", lambda *_: False)
        for _ in range(100):
            bank.read(Mixture(1), 1)
            if bank.answers == "exact":
                break
    assert bank.bank.index_state.reason == reasons.NONE_FASTER
    for _ in range(24):
        bank.add(bank.draw(Mixture(1), 500))
        bank.read(Mixture(1), 3)
    assert bank.answers == "ivf"
    assert bank.check(bank.draw(Mixture(1), 100)) >= 0.93
