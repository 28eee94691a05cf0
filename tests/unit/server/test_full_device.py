"""A device whose memory is full, at any moment: what is stored stays right, and nothing is half done."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recollect_server.application.commands import Add
from recollect_server.domain.arrays import RowBytes, from_float32
from recollect_server.domain.bank import Bank
from recollect_server.domain.errors import MemoryExhaustedError
from recollect_server.domain.eviction import ByIds, Oldest
from recollect_server.domain.ports import Device
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.steps import run_through
from recollect_server.domain.usage import Usage
from recollect_server.engine import cpu_buffers
from recollect_server.engine.cpu import CpuDevice
from recollect_server.engine.torch_device import TorchDevice, TorchStore
from recollect_server.engine.torch_rule import IndexRule
from tests.unit.server.use_cases import Server

HEADS, KEY_DIM, VALUE_DIM, CAPACITY = 2, 8, 3, 1200
FIRST = 7
Float = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Known = dict[int, tuple[Float, Float]]
"""Keys and values by id: what a bank should hold."""


class Full(TorchDispatchMode):
    """Has the n-th allocation of a tensor fail, as a card does that is full.

    Args:
        after: Allocations that succeed.

    Attributes:
        taken: Bytes of each of them.
    """

    def __init__(self, after: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's is not annotated
        self.left = after
        self.taken: list[int] = []

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        del types
        returns = func._schema.returns
        allocates = returns and all(
            each.alias_info is None and "Tensor" in str(each.type) for each in returns
        )
        if allocates:
            self.left -= 1
            if self.left == -1:
                raise torch.OutOfMemoryError("CUDA out of memory")
        made: object = func(*args, **(kwargs or {}))
        if allocates and isinstance(made, torch.Tensor):
            self.taken.append(made.nbytes)
        return made


def unit_keys(ids: Sequence[int]) -> Float:
    """Keys [Hkv, n, Dk] of length 1, near a few centres: each is nearest to itself."""
    keys = np.empty((HEADS, len(ids), KEY_DIM))
    for at, number in enumerate(ids):
        rng = np.random.default_rng(number)
        keys[:, at] = np.eye(KEY_DIM)[number % KEY_DIM] + 0.3 * rng.standard_normal((HEADS, KEY_DIM))
    keys /= np.linalg.norm(keys, axis=-1, keepdims=True)
    return keys.astype(np.float32)


def values_of(ids: Sequence[int]) -> Float:
    return np.broadcast_to(np.array(ids, np.float32)[None, :, None], (HEADS, len(ids), VALUE_DIM)).copy()


def add(bank: Bank, known: Known, tokens: int) -> None:
    """Adds, and tells `known` if that succeeds."""
    ids = list(range(bank.ring.next_sequence, bank.ring.next_sequence + tokens))
    keys, values = unit_keys(ids), values_of(ids)
    bank.add(from_float32(keys, Dtype.FLOAT32), from_float32(values, Dtype.FLOAT32), now_s=0.0)
    known.update({number: (keys[:, at], values[:, at]) for at, number in enumerate(ids)})
    for number in sorted(known)[:-CAPACITY]:
        del known[number]


def evict(bank: Bank, known: Known, ids: Sequence[int]) -> None:
    bank.evict(ByIds(np.array(ids)), now_s=0.0)
    for number in ids:
        del known[number]


def check(bank: Bank, known: Known) -> None:
    """The bank holds what is known and nothing else, finds it, weighs it, and counts it."""
    ids = np.array(sorted(known))
    assert bank.ring.ids().tolist() == ids.tolist()
    slots = np.tile(bank.ring.slots_of_ids(ids), (HEADS, 1, 1))
    keys, values = (np.stack([known[number][which] for number in ids], axis=1) for which in (0, 1))
    np.testing.assert_array_equal(bank.keys(slots).float32()[:, 0], keys)
    np.testing.assert_array_equal(bank.values(slots).float32()[:, 0], values)
    some = slice(None, None, 7)
    for exact in (True, False):
        asked = from_float32(keys[:, some], Dtype.FLOAT32)
        out = run_through(bank.attend(asked, 1, scale=1.0, exact=exact))
        right = bank.ids(out.slots)[:, :, 0] == ids[some]
        assert right.mean() >= (1.0 if exact else 0.9)
        np.testing.assert_allclose(out.output[..., 0], bank.ids(out.slots)[:, :, 0], rtol=1e-6)
    assert bank._usage.entries == ids.size
    assert bank._usage.bytes == bank.allocated_bytes


def filled(entries: int) -> tuple[Bank, Known]:
    """A bank whose ring does not begin at slot 0, with an inverted file that answers."""
    rule = IndexRule(index="ivf", recall=0.9, entries_min=300, auto_entries_min=300)
    spec = NamespaceSpec((0,), HEADS, KEY_DIM, VALUE_DIM, capacity=CAPACITY, dtype=Dtype.FLOAT32)
    bank = Bank(spec, TorchDevice("cpu", index=rule).store(spec), first_sequence=FIRST, usage=Usage())
    known: Known = {}
    add(bank, known, entries)
    oldest = sorted(known)[:60]
    bank.evict(Oldest(len(oldest)), now_s=0.0)
    for number in oldest:
        del known[number]
    for seed in range(200):
        if bank.index_state.index == "ivf":
            return bank, known
        asked = from_float32(unit_keys(range(seed * 100, seed * 100 + 64)), Dtype.FLOAT32)
        run_through(bank.search(asked, 5))
    raise AssertionError(bank.index_state)


CHANGES: dict[str, tuple[int, Callable[[Bank, Known], None]]] = {
    "an add that outgrows its buffers": (500, lambda bank, known: add(bank, known, 300)),
    "an add for which the oldest make room": (CAPACITY, lambda bank, known: add(bank, known, 500)),
    "an eviction from the middle": (500, lambda bank, known: evict(bank, known, sorted(known)[5:300:3])),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_a_change_that_finds_no_memory_changes_nothing(name: str) -> None:
    """A full card leaves keys beside the values of others, or ids that name them: wrong answers, silently."""
    entries, change = CHANGES[name]
    prepared = filled(entries)
    outcomes: list[str] = []
    while len(outcomes) < 10_000:
        bank, known = copy.deepcopy(prepared)
        full = Full(len(outcomes))
        try:
            with full:
                change(bank, known)
            outcomes.append("done")
        except MemoryExhaustedError:
            outcomes.append("refused")
        check(bank, known)
        if full.left >= 0:
            break
        if outcomes[-1] == "refused":
            change(bank, known)  # there is memory again
        add(bank, known, 10)
        check(bank, known)
    # What an index finds no memory for is no reason to refuse a call.
    assert outcomes.count("done") > 1


def test_a_write_takes_no_memory_of_the_card() -> None:
    """An add to a bank that has room fails on a full card, and with it all training that goes on there."""
    bank, known = filled(500)
    assert isinstance(bank._store, TorchStore)
    bank._store._index.clear()
    with Full(0):
        add(bank, known, 5)
    check(bank, known)


def test_compaction_takes_no_memory_for_another_bank() -> None:
    """On a card that is nearly full, entries cannot be evicted to make room."""
    bank, known = filled(500)
    store = bank._store
    assert isinstance(store, TorchStore)
    store._index.clear()
    kept = sorted(known)[5:300:3]
    with Full(10_000) as card:
        evict(bank, known, kept)
    one_head = bank.ring.count * (KEY_DIM + VALUE_DIM) * 4
    assert card.taken
    assert sum(card.taken) <= one_head + bank.ring.count * 8
    check(bank, known)


@pytest.mark.parametrize("device", [CpuDevice(), CpuDevice(compiled=False), TorchDevice("cpu")])
@pytest.mark.parametrize("what", ["write", "compacting"])
def test_the_ring_waits_for_the_store(device: Device, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a store finds no memory, ids name slots that were never written, or what lay there before."""
    spec = NamespaceSpec((0,), HEADS, KEY_DIM, VALUE_DIM, capacity=CAPACITY, dtype=Dtype.FLOAT32)
    store = device.store(spec)
    bank, known = Bank(spec, store, first_sequence=FIRST, usage=Usage()), Known()
    add(bank, known, 100)

    def fails(*_: object) -> NoReturn:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(type(store), what, fails)
        with pytest.raises(MemoryError):
            add(bank, known, 20) if what == "write" else evict(bank, known, [FIRST + 3, FIRST + 50])
    check(bank, known)
    add(bank, known, 20)
    evict(bank, known, [FIRST + 3, FIRST + 50])
    check(bank, known)


@pytest.mark.parametrize("fails_at", range(1, 9))
def test_an_add_of_several_rows_is_stored_whole_or_not_at_all(
    fails_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of an add is stored, its repeat stores that again, or bytes that nobody has count for ever."""
    server = Server()
    server.add("old", 60)
    before = (server.memories.total.entries, server.memories.total.bytes, server.memories.total.streams)
    zeros, made = cpu_buffers._zeros, [0]

    def failing(spec: NamespaceSpec, slots: int, row_bytes: int) -> RowBytes:
        made[0] += bool(slots)
        if slots and made[0] == fails_at:
            raise MemoryError
        return zeros(spec, slots, row_bytes)

    streams = ("a", "old", "b", "c")
    array = from_float32(np.ones((len(streams), 1, 20, 2), np.float32), Dtype.FLOAT32)
    command = Add("n", 0, streams, keys=array, values=array, request_id="once")
    with monkeypatch.context() as patch:
        patch.setattr(cpu_buffers, "_zeros", failing)
        with pytest.raises(MemoryError):
            run_through(server.memory.add(server.namespace(), command))
    total = server.memories.total
    assert (total.entries, total.streams) == (before[0], before[2])
    memory = server.memories.peek(server.namespace().record)
    assert memory is not None
    assert total.bytes == sum(bank.allocated_bytes for _, _, bank in memory.banks())
    answer = run_through(server.memory.add(server.namespace(), command))
    assert run_through(server.memory.add(server.namespace(), command)) == answer
    assert total.entries == 60 + 4 * 20
    assert [bank.ring.count for _, _, bank in memory.banks()] == [80, 20, 20, 20]
    assert total.bytes == sum(bank.allocated_bytes for _, _, bank in memory.banks())
