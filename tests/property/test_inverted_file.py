"""An inverted file under any sequence of calls, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from recollect_server.domain.arrays import DenseArray, from_float32
from recollect_server.domain.eviction import ByIds, Everything, Oldest
from recollect_server.domain.spec import Dtype
from recollect_server.domain.steps import run_through
from recollect_server.engine import kernels
from tests.unit.server.indexed_bank import DIM, IndexedBank, Mixture

SIZES = st.sampled_from([1, 2, 255, 256, 257, 900, 2500])
EXAMPLES = 40
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
RECALL = 0.95
SURE = 0.8
"""What a search of some queries finds in any case, right after anything."""


class InvertedFileMachine(RuleBasedStateMachine):
    """Adds, evictions, searches and background work in any order."""

    @initialize(
        capacity=st.sampled_from([1500, 4096, 7000]),
        heads=st.sampled_from([1, 2]),
        dtype=st.sampled_from(list(Dtype)),
    )
    def begin(self, capacity: int, heads: int, dtype: Dtype) -> None:
        """A bank that has been read for a while."""
        self.made = Mixture()
        self.bank = IndexedBank(capacity, recall=RECALL, heads=heads, dtype=dtype)
        self.bank.add(self.bank.draw(self.made, 1400))
        self.bank.read(self.made, 6)

    @rule(size=SIZES)
    def add(self, size: int) -> None:
        """Of the mixture that lists are made for, or will be."""
        self.bank.add(self.bank.draw(self.made, size))

    @rule(seed=st.integers(1, 3))
    def drift(self, seed: int) -> None:
        """Keys and queries are of another mixture from now on."""
        self.made = Mixture(seed)

    @rule(size=SIZES)
    def add_one_many_times(self, size: int) -> None:
        """The same key, or zeroes."""
        key = self.bank.draw(self.made, 1).raw * (size % 2)
        self.bank.add(DenseArray(np.repeat(key, size, axis=1).astype(key.dtype), self.bank.dtype))

    @rule(size=SIZES)
    def evict_the_oldest(self, size: int) -> None:
        """From the front, as far as there are so many."""
        self.bank.evict(Oldest(size))

    @rule(first=st.integers(0, 3), step=st.integers(2, 40))
    def evict_some(self, first: int, step: int) -> None:
        """From anywhere."""
        self.bank.evict(ByIds(self.bank.ids[first::step]))

    @rule()
    def evict_everything(self) -> None:
        """The buffer stays."""
        self.bank.evict(Everything())

    @rule(queries=st.sampled_from([1, 3, 30, 130]), top_k=st.sampled_from([1, 10, 64]))
    def search(self, queries: int, top_k: int) -> None:
        """What is found is live, found once, and nearly all of it the best."""
        recall = self.bank.check(self.bank.draw(self.made, queries), top_k)
        if self.bank.answers == "exact":
            assert recall == 1.0

    @rule(turns=st.integers(1, 4))
    def some_upkeep(self, turns: int) -> None:
        """A few turns, whether or not there is work."""
        for _ in range(turns):
            run_through(self.bank.bank.upkeep())

    @rule(pauses=st.integers(1, 5))
    def upkeep_that_is_given_up(self, pauses: int) -> None:
        """Steps that are closed before they end."""
        steps = self.bank.bank.upkeep()
        try:
            next(steps)
            for _ in range(pauses):
                steps.send(1)
        except StopIteration:
            return
        steps.close()

    @rule()
    def read_for_a_while(self) -> None:
        """Then the recall is what was asked for, or nearly: it is measured on samples."""
        self.bank.read(self.made, 30)
        assert self.bank.check(self.bank.draw(self.made, 200)) >= RECALL - 0.05

    @invariant()
    def exact_is_exact(self) -> None:
        """Whatever became of the lists."""
        rng = np.random.default_rng(self.bank.ids.size)
        q = rng.standard_normal((self.bank.heads, 2, DIM)).astype(np.float32)
        self.bank.check(from_float32(q, self.bank.dtype), 5, exact=True)


@pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")
def test_any_sequence_of_calls() -> None:
    """Some sequence of calls loses entries, or brings back those that are gone."""
    bounds = settings(max_examples=EXAMPLES, stateful_step_count=12, deadline=None, phases=PHASES)
    run_state_machine_as_test(InvertedFileMachine, settings=bounds)
