"""By which queries inverted lists are compared with exact search, when, and when they are given up."""

from __future__ import annotations

import numpy as np
import pytest

from recollect_server.domain.steps import run_through
from recollect_server.engine import kernels, upkeep
from recollect_server.engine.ivf import InvertedFile
from recollect_server.engine.samples import SAMPLES
from tests.unit.server.indexed_bank import IndexedBank, Mixture

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")


def test_queries_of_all_places_are_compared() -> None:
    """The same places of each call are compared: where a call repeats, a few queries speak for all of it."""
    made, bank = Mixture(), IndexedBank(4000)
    bank.add(bank.draw(made, 4000))
    asked = bank.draw(made, 512)
    places = {query.tobytes(): place for place, query in enumerate(asked.float32()[0])}
    compared: set[int] = set()
    for _ in range(100):
        run_through(bank.bank.search(asked, 10))
        assert bank.store._index is not None
        compared |= {places[query.tobytes()] for query, _ in bank.store._index._samples[0].kept}
        bank.upkeep()
    assert len(compared) >= 200
    assert max(np.diff(sorted({0, *compared, 511}))) <= 16


def test_lists_are_not_given_up_for_a_few_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few queries leave much to chance: lists that would be of use look as if they were not, and go."""
    made, bank = Mixture(noise=2.0), IndexedBank(8000)
    bank.add(bank.draw(made, 8000))
    looked: list[tuple[int, int]] = []
    is_useful = upkeep.Index._is_useful

    def noted(index: upkeep.Index, file: InvertedFile, entries: int) -> bool:
        looked.append((file.probes, file.probes_hoped))
        return is_useful(index, file, entries)

    monkeypatch.setattr(upkeep.Index, "_is_useful", noted)
    bank.read(made, 100)
    lists = bank.bank.index_state.lists
    first, hoped = looked[0]
    assert first > lists // 2 >= hoped  # so it was a close thing
    assert bank.answers == "ivf"
    assert looked[-1][0] == looked[-1][1] <= lists // 2
    assert bank.check(bank.draw(made, 300)) >= 0.95


def test_lists_that_stay_of_no_use_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could be of use and never is stays for ever: entries are put into its lists for nothing."""
    made, bank = Mixture(), IndexedBank(4000)
    bank.add(bank.draw(made, 4000))
    bank.trained(made)
    settle = InvertedFile.settle

    def hopeful(file: InvertedFile, recall: float) -> None:
        settle(file, recall)
        file.probes = len(file.centroids)

    monkeypatch.setattr(InvertedFile, "settle", hopeful)
    bank.read(made, 40)
    state = bank.bank.index_state
    assert (state.index, bool(state.reason)) == ("exact", True)


def test_lists_are_judged_anew_when_a_bank_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was learnt of fewer entries is held for true until searches have paid for a comparison."""
    monkeypatch.setattr(upkeep, "COMPARED", 0.0)
    made, bank = Mixture(), IndexedBank(16_000)
    bank.add(bank.draw(made, 4000))
    bank.trained(made)
    bank.read(made, 200)
    before = bank.bank.index_state.sampled
    assert before == (upkeep.JUDGED_SURE - 1) * SAMPLES  # new lists are compared, and once when made
    bank.read(made, 50)
    assert bank.bank.index_state.sampled == before
    bank.add(bank.draw(made, 3000))
    bank.read(made, 200)
    state = bank.bank.index_state
    assert before < state.sampled <= before + (upkeep.JUDGED_SURE + 1) * SAMPLES
    assert state.lists == 256  # the same ones
    assert bank.check(bank.draw(made, 300)) >= 0.95


def test_a_bank_that_has_grown_is_searched_farther_until_it_is_judged() -> None:
    """Nobody read while a bank grew: the first who do find a part of what they ask for."""
    for seed in range(3):
        made, bank = Mixture(seed), IndexedBank(20_000)
        bank.add(bank.draw(made, 2000))
        bank.trained(made)
        bank.add(bank.draw(made, 3000))
        bank.upkeep()
        assert bank.answers == "ivf"
        assert bank.check(bank.draw(made, 100)) >= 0.95
