"""A bank that outgrows its buffer: a little at a time, and whole or not at all."""

from __future__ import annotations

import numpy as np
import pytest

from recollect_server.application.commands import Add, Added, Namespace
from recollect_server.domain import work
from recollect_server.domain.arrays import Raw, from_float32
from recollect_server.domain.errors import QuotaExceededError
from recollect_server.domain.registry import NamespaceRecord
from recollect_server.domain.ring import Write
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.steps import Steps, run_through
from recollect_server.domain.tenants import Quotas
from recollect_server.engine import cpu_buffers
from recollect_server.engine.cpu import CpuDevice
from tests.unit.server.use_cases import Server, steps_of

BIG = NamespaceSpec(layers=(0,), heads=1, key_dim=2, value_dim=2, capacity=200_000, dtype=Dtype.FLOAT32)
HELD = 65_536
HEADS, DIM = 2, 3


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Raw]:
    """Buffers, as they are made."""
    made: list[Raw] = []
    zeros = cpu_buffers._zeros

    def noted(spec: NamespaceSpec, slots: int, dim: int) -> Raw:
        made.append(array := zeros(spec, slots, dim))
        return array

    monkeypatch.setattr(cpu_buffers, "_zeros", noted)
    return made


def adding_to(server: Server, namespace: Namespace, tokens: int, *streams: str) -> Steps[Added]:
    """An add of some numbers, the same to each."""
    elements = np.arange(2 * tokens, dtype=np.float32).reshape(1, 1, tokens, 2)
    array = from_float32(np.repeat(elements, len(streams), axis=0), Dtype.FLOAT32)
    return server.memory.add(namespace, Add("big", 0, streams, array, array))


def full_banks(server: Server, *streams: str) -> Namespace:
    """Banks whose buffers are full."""
    record = NamespaceRecord("one", "big", BIG, created_at_ms=1_000_000, uid="one/big")
    namespace = Namespace(record, server.quotas)
    run_through(adding_to(server, namespace, HELD, *streams))
    return namespace


def usage(server: Server) -> tuple[int, int]:
    """Entries and bytes."""
    total = server.memories.total
    return total.entries, total.bytes


def test_a_bank_grows_a_little_at_a_time(made: list[Raw]) -> None:
    """All tenants wait while one of them has gigabytes moved to a larger buffer."""
    server, budget = Server(), 1_000_000
    namespace = full_banks(server, "a")
    made.clear()
    steps = steps_of(adding_to(server, namespace, 1, "a"), budget)
    assert max(steps) <= budget
    assert sum(steps) >= work.moved_to_new(HELD * BIG.entry_bytes)
    assert len(made) == 2, "keys and values are copied once"
    memory = server.memories.peek(namespace.record)
    held = None if memory is None else memory.bank("a", 0)
    assert held is not None
    assert held.ring.count == HELD + 1
    first = held.ring.first_id
    slots = held.ring.slots_of_ids(np.arange(first, first + HELD + 1)[None, None])
    keys = held.keys(slots).float32()[0, 0]
    np.testing.assert_array_equal(keys[:HELD].reshape(-1), np.arange(2 * HELD, dtype=np.float32))
    np.testing.assert_array_equal(keys[HELD], [0, 1])


@pytest.mark.parametrize("after", [3, 60])
def test_an_add_that_is_given_up_while_banks_grow_has_done_nothing(after: int, made: list[Raw]) -> None:
    """Entries are in two buffers, larger ones count though nobody has them, or copies stay in memory."""
    server = Server()
    namespace = full_banks(server, "a", "b")
    before = usage(server)
    made.clear()
    adding = adding_to(server, namespace, 1, "a", "b")
    next(adding)
    for _ in range(after):
        adding.send(1_000_000)
    assert len(made) == (2 if after == 3 else 4), "after the others the first bank's are whole"
    assert made[0].any()
    adding.close()
    assert not any(array.any() for array in made)
    assert usage(server) == before
    run_through(adding_to(server, namespace, 1, "a", "b"))
    assert usage(server) == (before[0] + 2, before[1] + 2 * HELD * BIG.entry_bytes)


def test_no_bank_grows_for_an_add_that_is_refused(made: list[Raw]) -> None:
    """Who is over its quota has the device copy gigabytes for each of its adds, and memory taken for them."""
    server = Server(quotas=Quotas(bytes_max=HELD * BIG.entry_bytes + 100))
    namespace = full_banks(server, "a")
    before = usage(server)
    made.clear()
    with pytest.raises(QuotaExceededError, match="bytes"):
        run_through(adding_to(server, namespace, 1, "a"))
    assert not made
    assert usage(server) == before


@pytest.mark.parametrize("how", ["dropped", "closed"])
def test_copies_that_are_not_taken_are_zeroed(how: str, made: list[Raw]) -> None:
    """What one stream stored stays in memory that another may get, after an add that came to nothing."""
    spec = NamespaceSpec((0,), HEADS, DIM, DIM, capacity=1200, dtype=Dtype.FLOAT32)
    store, whole = CpuDevice().store(spec), slice(0, 600)
    data = from_float32(np.ones((HEADS, 600, DIM), np.float32), Dtype.FLOAT32)
    run_through(store.growing(600, [])).take()
    store.write([Write(whole, whole)], data, data)
    made.clear()
    growing = store.growing(1200, [whole])
    if how == "closed":
        next(growing)
        growing.send(work.moved_to_new(HEADS * DIM * 4 * 100))
        assert made[0].any()
        growing.close()
    else:
        growth = run_through(growing)
        assert all(array.any() for array in made)
        growth.drop()
    assert len(made) == 2
    assert not any(array.any() for array in made)
