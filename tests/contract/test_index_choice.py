"""What a client asks of an index reaches the store, and what the store says of it reaches the client.

The store is one that misses half of the entries wherever it may: a good index is hardly caught missing any.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import recollect
from recollect_server import bootstrap
from recollect_server.domain.ports import IndexState
from recollect_server.domain.spec import IndexChoice
from recollect_server.engine.cpu import CpuDevice
from tests.clients import blocking_client
from tests.contract.memories import CheckedMemory, Index, Memories
from tests.half_device import FALLEN_BACK, STATE, HalfDevice

ENTRIES = 8


@pytest.fixture
def device() -> HalfDevice:
    """What the server finds in place of its own."""
    return HalfDevice(CpuDevice())


@pytest.fixture(params=["sync", "async"])
def half(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, device: HalfDevice
) -> Iterator[recollect.Client]:
    """A client of a server on that device."""
    monkeypatch.setattr(bootstrap, "choose_device", lambda settings: device)
    url = "embedded://"
    with blocking_client(url) if request.param == "async" else recollect.connect(url) as client:
        yield client


def made(half: recollect.Client, rng: np.random.Generator, index: Index) -> CheckedMemory:
    """A namespace with some entries."""
    memory = Memories(half, rng)(index=index, capacity=ENTRIES)
    memory.add(["a", "b"], ENTRIES)
    return memory


def found(result: recollect.SearchResult[np.ndarray] | recollect.AttendResult[np.ndarray]) -> set[int]:
    """How many entries each query found."""
    assert result.ids is not None
    return set((result.ids >= 0).sum(axis=-1).flat)


def test_exact_reaches_the_store(half: recollect.Client, rng: np.random.Generator) -> None:
    """A read that asks for exact search is answered by the index, or all reads cost what exact ones do."""
    memory = made(half, rng, "ivf")
    memory.check_search(["a", "b"], top_k=ENTRIES, exact=True)
    memory.check_attend(["a", "b"], top_k=ENTRIES, exact=True)
    queries = memory.queries(2, 3)
    for read in (memory.ns.search, memory.ns.attend):
        assert found(read(0, queries, top_k=ENTRIES, streams=["a", "b"])) == {ENTRIES // 2}
        assert found(read(0, queries, top_k=ENTRIES, streams=["a", "b"], exact=False)) == {ENTRIES // 2}
        assert found(read(0, queries, top_k=ENTRIES, streams=["a", "b"], exact=True)) == {ENTRIES}


@pytest.mark.parametrize("index", ["exact", "auto", "ivf"])
def test_index_and_recall_reach_the_store(half: recollect.Client, device: HalfDevice, index: Index) -> None:
    """A store is made for another index, or holds another recall, than the namespace asked for."""
    ns = half.create_namespace(
        "n", layers=[0], heads=1, key_dim=2, value_dim=2, capacity=4, index=index, recall=0.75
    )
    ones = np.ones((1, 1, 1, 2), np.float32)
    ns.add(0, ones, ones, streams=["a"])
    assert {(spec.index, spec.recall) for spec in device.made} == {(IndexChoice(index), 0.75)}


def test_what_the_store_says_reaches_the_client(half: recollect.Client, rng: np.random.Generator) -> None:
    """A user cannot tell what answers, how well, or why it is not what was asked for."""
    expected: dict[Index, IndexState] = {"ivf": STATE, "auto": FALLEN_BACK}
    for index, state in expected.items():
        for bank in made(half, rng, index).ns.stats(streams=["a", "b"]).banks:
            assert (bank.index, bank.lists, bank.probes) == (state.index, state.lists, state.probes)
            assert (bank.recall, bank.sampled, bank.reason) == (state.recall, state.sampled, state.reason)
            assert bank.entries == ENTRIES
