"""Any sequence of calls against the oracle: rings, streams and layers keep their entries in order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from numpy.typing import NDArray

import recollect
from tests.contract.memories import DTYPES, VALUE_DTYPES, CheckedMemory, Dtype, Memories, ValueDtype

STREAMS = ("a", "b", "c")
LAYERS = (0, 4)
_numbers = itertools.count()
_client: list[recollect.Client] = []

streams = st.lists(st.sampled_from(STREAMS), min_size=1, max_size=3, unique=True)
layer_numbers = st.sampled_from(LAYERS)
sizes = st.integers(1, 9)


class MemoryMachine(RuleBasedStateMachine):
    """Adds, reads, evicts and forgets, in any order."""

    memory: CheckedMemory

    def __init__(self) -> None:
        super().__init__()
        self.known: set[str] = set()
        self.forward: tuple[int, list[str], NDArray[np.float32], NDArray[np.generic]] | None = None

    @initialize(
        dtype=st.sampled_from(DTYPES),
        value_dtype=st.sampled_from(VALUE_DTYPES),
        heads=st.integers(1, 2),
        dims=st.tuples(st.integers(1, 6), st.integers(1, 6)),
        capacity=st.sampled_from([8, 1, 3, 13, 70, 150]),
        seed=st.integers(0, 2**32 - 1),
    )
    def begin(
        self,
        dtype: Dtype,
        value_dtype: ValueDtype | None,
        heads: int,
        dims: tuple[int, int],
        capacity: int,
        seed: int,
    ) -> None:
        """A namespace of some shape."""
        self.memory = Memories(_client[0], np.random.default_rng(seed))(
            name=f"machine-{next(_numbers)}",
            layers=LAYERS,
            heads=heads,
            key_dim=dims[0],
            value_dim=dims[1],
            capacity=capacity,
            dtype=dtype,
            value_dtype=value_dtype,
        )

    @rule(layer=layer_numbers, names=streams, tokens=sizes, large=st.booleans(), data=st.data())
    def add(self, layer: int, names: list[str], tokens: int, large: bool, data: st.DataObject) -> None:
        """Rows of different length, some longer than the memory."""
        tokens = 9 * tokens if large else tokens
        lengths = data.draw(st.lists(st.integers(0, tokens), min_size=len(names), max_size=len(names)))
        self.memory.add(names, tokens, layer=layer, lengths=lengths)
        self.known.update(names)
        self._look(names, layer)

    @rule(layer=layer_numbers, tokens=sizes)
    def add_to_all(self, layer: int, tokens: int) -> None:
        """As a training step does; this is what fills the rings."""
        self.memory.add(STREAMS, tokens, layer=layer)
        self.known.update(STREAMS)
        self._look(STREAMS, layer)

    @rule(layer=layer_numbers, names=streams, top_k=st.integers(1, 12), group=st.integers(1, 3))
    def search(self, layer: int, names: list[str], top_k: int, group: int) -> None:
        """Also from streams that do not exist."""
        self.memory.check_search(names, layer=layer, top_k=top_k, group=group, missing_ok=True)

    @rule(layer=layer_numbers, names=streams, top_k=st.integers(1, 12), group=st.integers(1, 3))
    def attend(self, layer: int, names: list[str], top_k: int, group: int) -> None:
        """With its gradient at once, and kept for a gradient that comes late."""
        out = self.memory.check_attend(names, layer=layer, top_k=top_k, group=group, missing_ok=True)
        assert out.ids is not None
        query_heads = group * self.memory.ns.spec.heads
        q = self.memory.draw(len(names), query_heads, out.ids.shape[2], self.memory.ns.spec.key_dim)
        self.forward = (layer, names, q, out.ids)

    @precondition(lambda self: self.forward is not None)
    @rule()
    def late_backward(self) -> None:
        """Right if all entries are still there, refused if one is not; never silently wrong."""
        assert self.forward is not None
        layer, names, q, ids = self.forward
        stored = [
            set(row[row >= 0].tolist()) <= set(self.memory.ids(name, layer=layer))
            for name, row in zip(names, ids, strict=True)
        ]
        if all(stored):
            self.memory.check_backward(q, ids, names, layer=layer)
        else:
            with pytest.raises(recollect.StaleEntryError):
                self.memory.check_backward(q, ids, names, layer=layer)

    @rule(layer=layer_numbers, names=streams, oldest=st.integers(1, 30))
    def evict_oldest(self, layer: int, names: list[str], oldest: int) -> None:
        """From the ring's head."""
        self._evict(names, layer, lambda ids: ids[:oldest], {"oldest": oldest})

    @rule(layer=layer_numbers, name=st.sampled_from(STREAMS), data=st.data())
    def evict_ids(self, layer: int, name: str, data: st.DataObject) -> None:
        """From anywhere, with ids that are not there."""
        ids = self.memory.ids(name, layer=layer)
        chosen = data.draw(st.lists(st.sampled_from(ids), unique=True)) if ids else []
        absent = [ids[-1] + 7] if ids else [7]
        self._evict([name], layer, lambda _: chosen, {"ids": [*chosen, *absent]})

    @rule(layer=layer_numbers, name=st.sampled_from(STREAMS), part=st.floats(0, 1))
    def evict_before_sequence(self, layer: int, name: str, part: float) -> None:
        """Up to some id."""
        ids = self.memory.ids(name, layer=layer) or [0]
        sequence = ids[int(part * (len(ids) - 1))]
        self._evict(
            [name], layer, lambda ids: [i for i in ids if i < sequence], {"before_sequence": sequence}
        )

    @rule(names=streams)
    def forget(self, names: list[str]) -> None:
        """A document starts: the stream is gone, in every layer."""
        evicted = sum(self.memory.oracle.forget(name, LAYERS) for name in names)
        assert self.memory.ns.evict(streams=names, all=True, missing_ok=True).evicted == evicted
        self.known.difference_update(names)

    @invariant()
    def counts(self) -> None:
        """The server counts what the oracle holds."""
        if hasattr(self, "memory"):
            stats = self.memory.ns.stats(streams=sorted(self.known))
            assert stats.streams == len(self.known)
            assert stats.entries == sum(len(bank.ids) for bank in self.memory.oracle.banks.values())
            for bank in stats.banks:
                ids = self.memory.ids(bank.stream, layer=bank.layer)
                assert bank.entries == len(ids)
                assert bank.first_id == (ids[0] if ids else bank.next_sequence)

    def teardown(self) -> None:
        """Frees the namespace."""
        if hasattr(self, "memory"):
            _client[0].delete_namespace(self.memory.ns.name)

    def _evict(
        self, names: list[str], layer: int, chosen: object, selector: dict[str, int | list[int]]
    ) -> None:
        choose = cast("type[list[int]]", chosen)
        evicted = 0
        for name in names:
            bank = self.memory.oracle.bank(name, layer)
            gone = set(choose(bank.ids))
            evicted += bank.keep([i for i, entry in enumerate(bank.ids) if entry not in gone])
        ns = self.memory.ns
        layers = [layer]
        if "oldest" in selector:
            came = ns.evict(
                streams=names, layers=layers, oldest=cast("int", selector["oldest"]), missing_ok=True
            )
        elif "ids" in selector:
            came = ns.evict(
                streams=names, layers=layers, ids=cast("list[int]", selector["ids"]), missing_ok=True
            )
        else:
            sequence = cast("int", selector["before_sequence"])
            came = ns.evict(streams=names, layers=layers, before_sequence=sequence, missing_ok=True)
        assert came.evicted == evicted
        self._look(names, layer)

    def _look(self, names: Sequence[str], layer: int) -> None:
        self.memory.check_search(names, layer=layer, top_k=20, tokens=1, missing_ok=True)


def _run(examples: int) -> None:
    machine = MemoryMachine.TestCase
    machine.settings = settings(max_examples=examples, stateful_step_count=40, deadline=None)
    with recollect.connect("embedded://") as client:
        _client[:] = [client]
        machine("runTest").runTest()


def test_any_sequence_of_calls() -> None:
    """Some sequence of add, search, attend, evict and reset gives an answer that the oracle does not."""
    _run(60)


@pytest.mark.slow
def test_many_sequences_of_calls() -> None:
    """As above, looked for longer."""
    _run(500)
