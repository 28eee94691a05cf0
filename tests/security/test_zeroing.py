"""What a tenant stored is gone when it is deleted: nobody gets a buffer with anything of it left inside."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import Message

from recollect.v1 import memory_pb2 as pb
from recollect_server.domain.arrays import Float32, Raw, from_float32
from recollect_server.domain.bank import Bank
from recollect_server.domain.eviction import ByIds, Everything, Oldest, Selector
from recollect_server.domain.ports import Device
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.steps import run_through
from recollect_server.domain.usage import Usage
from recollect_server.engine import kernels, kmeans, upkeep
from recollect_server.engine.cpu import CpuDevice
from recollect_server.engine.cpu_buffers import CpuBuffers
from recollect_server.engine.torch_device import TorchDevice, TorchStore
from tests.contract import messages
from tests.installation import Installation
from tests.security.process_memory import addresses_of
from tests.server_process import ServerProcess
from tests.unit.server.indexed_bank import IndexedBank, Mixture

DEVICES: dict[str, Callable[[], Device]] = {
    "kernels": CpuDevice,
    "faiss": lambda: CpuDevice(compiled=False),
    "torch": lambda: TorchDevice("cpu"),
}
NAMESPACE, STREAM = "same-name", "s"
CAPACITY, BATCH = 512, 4
RUN = 40
"""Rows of one pattern behind each other: more than are in any message, so they are in a buffer, or were."""
DIMS = {"heap": 16, "pages": 512}
"""Sizes of a key for which the allocator takes a buffer from its heap, or gets pages for it."""


Row = np.ndarray[tuple[int], np.dtype[np.float32]]


# ---- the stores themselves ----


def filled_bank(device: Device, *, capacity: int, entries: int, dtype: Dtype = Dtype.FLOAT32) -> Bank:
    """A bank of entries that are all 1."""
    spec = NamespaceSpec((0,), 2, 8, 8, capacity=capacity, dtype=dtype)
    bank = Bank(spec, device.store(spec), first_sequence=0, usage=Usage())
    ones = from_float32(np.ones((2, entries, 8), np.float32), dtype)
    bank.add(ones, ones, now_s=0.0)
    return bank


def buffers(bank: Bank) -> list[np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    """A bank's whole buffers as they are now, whatever the ring says of their slots."""
    store = bank._store
    assert isinstance(store, CpuBuffers | TorchStore)
    return [_bits(store._keys), _bits(store._values)]


def _bits(buffer: object) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    if isinstance(buffer, np.ndarray):
        return buffer
    import torch

    assert isinstance(buffer, torch.Tensor)
    return buffer.view(torch.int16 if buffer.element_size() == 2 else torch.int32).numpy()


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("device", DEVICES)
def test_a_new_buffer_is_zero(device: str, dtype: Dtype) -> None:
    """A buffer comes with what another had in it: the slots beyond those that were written are not zero."""
    chosen = DEVICES[device]()
    for _ in range(20):  # each takes what the one before has just given back
        bank = filled_bank(chosen, capacity=64, entries=5, dtype=dtype)
        for buffer in buffers(bank):
            assert buffer.shape[1] == 64
            assert not buffer[:, 5:].any()
        bank.clear()


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("device", DEVICES)
def test_an_old_buffer_is_zero(device: str, dtype: Dtype) -> None:
    """A buffer is given back with entries in it: when its bank grows, or goes."""
    bank = filled_bank(DEVICES[device](), capacity=1000, entries=64, dtype=dtype)
    before = buffers(bank)
    assert all(buffer.all() for buffer in before)
    more = from_float32(np.ones((2, 10, 8), np.float32), dtype)
    bank.add(more, more, now_s=0.0)
    grown = buffers(bank)
    assert not any(buffer.any() for buffer in before)
    assert all(buffer[:, :74].all() and not buffer[:, 74:].any() for buffer in grown)
    bank.clear()
    assert not any(buffer.any() for buffer in grown)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "selector", [Oldest(30), ByIds(np.arange(1, 64, 2)), Everything()], ids=["oldest", "ids", "all"]
)
def test_an_evicted_banks_buffer_is_zero(device: str, selector: Selector) -> None:
    """What was evicted and not overwritten, which stays in its own buffer at first, outlasts that buffer."""
    bank = filled_bank(DEVICES[device](), capacity=64, entries=64)
    bank.evict(selector, now_s=0.0)
    before = buffers(bank)
    bank.clear()
    assert not any(buffer.any() for buffer in before)


@pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")
def test_what_an_index_keeps_of_a_bank_is_zeroed() -> None:
    """Centroids, which are nearly keys, and the queries that were sampled outlast their bank."""
    made, bank = Mixture(), IndexedBank(3000, heads=2)
    bank.add(bank.draw(made, 3000))
    run_through(bank.bank.search(bank.draw(made, 64), 10))
    run_through(bank.bank.search(bank.draw(made, 64), 10))
    index = bank.store._index
    assert index is not None
    bank.trained(made)
    run_through(bank.bank.search(bank.draw(made, 64), 10))
    files = [file for file in index._files if file is not None]
    kept = [query for samples in index._samples for query, _ in samples.kept]
    assert len(files) == 2
    assert kept
    kept += [array for file in files for array in (file.centroids, file._half_norms)]
    assert all(array.any() for array in kept)
    bank.bank.clear()
    assert not any(array.any() for array in kept)


@pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")
@pytest.mark.parametrize("turns", [0, 1, 400])
def test_what_an_index_is_trained_on_is_zeroed(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy of keys that centroids are made from outlasts the training, or a bank that goes meanwhile."""
    monkeypatch.setattr(upkeep, "STEP", 100_000)
    monkeypatch.setattr(upkeep, "SLICE", 200_000)
    copies: list[Float32] = []

    def noted(
        sample: Float32, now: Callable[[], tuple[Raw, Sequence[slice]]], dtype: Dtype
    ) -> Generator[int, None, None]:
        copies.append(sample)
        return kmeans.fill(sample, now, dtype)

    monkeypatch.setattr(upkeep, "fill", noted)
    made, bank = Mixture(), IndexedBank(3000)
    bank.add(bank.draw(made, 3000))
    for _ in range(4):
        run_through(bank.bank.search(bank.draw(made, 64), 10))
    run_through(bank.bank.upkeep())
    assert copies[0].any()
    for _ in range(turns):
        run_through(bank.bank.upkeep())
    assert copies[0].any() == (turns < 400)
    bank.bank.clear()
    assert not any(copy.any() for copy in copies)


# ---- over the wire ----


@dataclass(frozen=True)
class House:
    """A server with keys; the second tenant comes when the first has gone."""

    installation: Installation
    first: str
    second: str

    def done(self, method: str, request: Message, *, token: str) -> Message:
        """A call that has to succeed."""
        answer = self.installation.rpc(method, request, token=token)
        assert answer.code == "OK", answer
        assert answer.response is not None
        return answer.response

    def create(self, token: str, dim: int) -> None:
        """Makes the namespace; both tenants give it the same name and sizes."""
        spec = messages.spec(heads=1, key_dim=dim, value_dim=dim, capacity=CAPACITY)
        self.done("CreateNamespace", pb.CreateNamespaceRequest(name=NAMESPACE, spec=spec), token=token)

    def add(self, token: str, row: Row, entries: int) -> list[int]:
        """Adds entries that are all the same, a few at a time; returns their ids."""
        ids: list[int] = []
        for first in range(0, entries, BATCH):
            count = min(BATCH, entries - first)
            rows = messages.tensor(np.tile(row, (1, 1, count, 1)))
            request = pb.AddRequest(
                namespace=NAMESPACE, layer=messages.LAYER, streams=[STREAM], keys=rows, values=rows
            )
            added = self.done("Add", request, token=token)
            assert isinstance(added, pb.AddResponse)
            ids += range(added.first_ids[0], added.first_ids[0] + count)
        return ids

    def evict(self, request: pb.EvictRequest) -> None:
        """Evicts from the first tenant's stream."""
        request.namespace, request.streams[:] = NAMESPACE, [STREAM]
        self.done("Evict", request, token=self.first)

    def leave(self) -> None:
        """Deletes the first tenant's namespace."""
        self.done("DeleteNamespace", pb.DeleteNamespaceRequest(name=NAMESPACE), token=self.first)

    def everything(self, token: str, dim: int) -> pb.SearchResponse:
        """All that a search can bring: as many entries as there is room for, with keys and values."""
        found = self.done(
            "Search",
            pb.SearchRequest(
                namespace=NAMESPACE,
                layer=messages.LAYER,
                streams=[STREAM],
                queries=messages.floats(1, 1, 1, dim),
                top_k=CAPACITY,
                include_keys=True,
                include_values=True,
                missing_ok=True,
            ),
            token=token,
        )
        assert isinstance(found, pb.SearchResponse)
        return found


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A server of this module's own."""
    data_dir: Path = tmp_path_factory.mktemp("data") / "data"
    with ServerProcess(data_dir=data_dir) as server, Installation(server) as installation:
        yield House(installation, installation.tenant("first"), installation.tenant("second"))


def new_row(dim: int) -> Row:
    """A row that nothing else looks like."""
    return np.random.default_rng().standard_normal(dim).astype(np.float32)


def ids_of(found: pb.SearchResponse) -> list[int]:
    """Those of the entries that were found."""
    offsets = np.frombuffer(found.ids.offsets.data, np.int32)
    present: list[int] = (offsets[offsets >= 0] + np.int64(found.ids.first_ids[0])).tolist()
    return present


LEAVING: dict[str, Callable[[list[int]], pb.EvictRequest | None]] = {
    "delete": lambda ids: None,
    "evict the oldest": lambda ids: pb.EvictRequest(oldest=100),
    "evict by ids": lambda ids: pb.EvictRequest(ids=pb.IdList(ids=ids[::3])),
    "evict all": lambda ids: pb.EvictRequest(all=True),
}
"""What the first tenant evicts before it deletes its namespace."""


@pytest.mark.parametrize("dim", DIMS.values(), ids=DIMS)
@pytest.mark.parametrize("leaving", LEAVING)
def test_the_next_tenant_finds_nothing(house: House, leaving: str, dim: int) -> None:
    """A tenant that makes a namespace as large as one that was deleted reads what was in it."""
    theirs, own = new_row(dim), np.full(dim, 0.25, np.float32)
    house.create(house.first, dim)
    ids = house.add(house.first, theirs, CAPACITY)
    assert theirs.tobytes() in house.everything(house.first, dim).keys.data
    if (eviction := LEAVING[leaving](ids)) is not None:
        house.evict(eviction)
    house.leave()

    house.create(house.second, dim)
    count = 0
    for more in (0, BATCH, 61, 200, CAPACITY - 265):  # no buffer, the first, fuller, and larger ones
        house.add(house.second, own, more)
        count += more
        found = house.everything(house.second, dim)
        assert len(ids_of(found)) == count
        assert not set(ids_of(found)) & set(ids)
        for tensor in (found.keys, found.values):
            rows = np.frombuffer(tensor.data, np.float32).reshape(CAPACITY, dim)
            assert (rows[:count] == own).all()
            assert not rows[count:].any()
    house.done("DeleteNamespace", pb.DeleteNamespaceRequest(name=NAMESPACE), token=house.second)


@pytest.mark.parametrize("dim", DIMS.values(), ids=DIMS)
@pytest.mark.parametrize("leaving", LEAVING)
def test_no_buffer_with_entries_is_left_in_the_process(house: House, leaving: str, dim: int) -> None:
    """A buffer of keys or values was given back, or left for a larger one, with entries in it.

    Said of buffers alone. Rows are found one by one, or a few behind each other, in what gRPC, protobuf and
    the allocator have of messages that came and went: nobody can ask for these, and they are not zeroed.
    """
    row, pid = new_row(dim), house.installation.server.process.pid
    run = row.tobytes() * RUN
    house.create(house.first, dim)
    ids = house.add(house.first, row, CAPACITY)
    # In the keys' buffer and the values', and in none of those that were left as these grew.
    assert len(addresses_of(run, pid)) == 2 * (CAPACITY - RUN + 1)
    if (eviction := LEAVING[leaving](ids)) is not None:
        house.evict(eviction)
    house.leave()
    assert not addresses_of(run, pid)
