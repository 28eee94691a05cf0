"""A bank that outgrows its buffer: a little at a time, and whole or not at all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from recollect_server.application.catalog import Catalog
from recollect_server.application.commands import Add, Added, Namespace
from recollect_server.application.dispatch import Dispatcher
from recollect_server.application.turns import Times, Turns
from recollect_server.application.upkeep import Upkeep
from recollect_server.domain import work
from recollect_server.domain.arrays import RowBytes, from_float32
from recollect_server.domain.errors import QuotaExceededError, RecollectError
from recollect_server.domain.identity import Caller
from recollect_server.domain.registry import NamespaceRecord
from recollect_server.domain.ring import Write
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.steps import Steps, run_through
from recollect_server.domain.telemetry import NoTelemetry
from recollect_server.domain.tenants import Quotas
from recollect_server.engine import cpu_buffers
from recollect_server.engine.cpu import CpuDevice
from tests.unit.server.shaky_registry import PATIENCE_S, until
from tests.unit.server.use_cases import BANK_BYTES, Server, steps_of

BIG = NamespaceSpec(layers=(0,), heads=1, key_dim=2, value_dim=2, capacity=200_000, dtype=Dtype.FLOAT32)
HELD = 65_536
HEADS, DIM = 2, 3


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[RowBytes]:
    """Buffers, as they are made."""
    made: list[RowBytes] = []
    zeros = cpu_buffers._zeros

    def noted(spec: NamespaceSpec, slots: int, row_bytes: int) -> RowBytes:
        made.append(array := zeros(spec, slots, row_bytes))
        return array

    monkeypatch.setattr(cpu_buffers, "_zeros", noted)
    return made


def add(namespace: Namespace, tokens: int, *streams: str) -> Add:
    """Some numbers, the same for each stream."""
    elements = np.arange(2 * tokens, dtype=np.float32).reshape(1, 1, tokens, 2)
    array = from_float32(np.repeat(elements, len(streams), axis=0), Dtype.FLOAT32)
    return Add(namespace.record.name, 0, streams, array, array)


def full_banks(server: Server, *streams: str) -> Namespace:
    """Banks whose buffers are full."""
    record = NamespaceRecord("one", "big", BIG, created_at_ms=1_000_000, uid="one/big")
    namespace = Namespace(record, server.quotas)
    run_through(server.memory.add(namespace, add(namespace, HELD, *streams)))
    return namespace


def usage(server: Server) -> tuple[int, int]:
    """Entries and bytes."""
    total = server.memories.total
    return total.entries, total.bytes


def test_a_bank_grows_a_little_at_a_time(made: list[RowBytes]) -> None:
    """All tenants wait while one of them has gigabytes moved to a larger buffer."""
    server, budget = Server(), 1_000_000
    namespace = full_banks(server, "a")
    made.clear()
    steps = steps_of(server.memory.add(namespace, add(namespace, 1, "a")), budget)
    assert max(steps) <= budget
    assert sum(steps) == work.moved_to_new(HELD * BIG.entry_bytes) + work.moved(BIG.entry_bytes)
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


def test_who_ends_while_banks_grow_leaves_nothing_behind(made: list[RowBytes]) -> None:
    """Larger buffers count though nobody has them, copies stay in memory, or those before are not kept."""
    server = Server()
    namespace = full_banks(server, "a", "b")
    entries, size_bytes = usage(server)
    made.clear()
    adding = server.memory.add(namespace, add(namespace, 1, "a", "b"))
    next(adding)
    larger = HELD * BIG.entry_bytes
    for _ in range(60):
        adding.send(1_000_000)
    assert len(made) == 4, "the first bank has its larger buffers"
    assert usage(server) == (entries, size_bytes + 2 * larger), "others cannot have that memory, too"
    adding.close()
    assert not any(array.any() for array in made[2:])
    assert usage(server) == (entries, size_bytes + larger)
    run_through(server.memory.add(namespace, add(namespace, 1, "a", "b")))
    assert usage(server) == (entries + 2, size_bytes + 2 * larger)


def test_no_bank_grows_for_an_add_that_is_refused(made: list[RowBytes]) -> None:
    """Who is over its quota has the device copy gigabytes for each of its adds, and memory taken for them."""
    server = Server(quotas=Quotas(bytes_max=HELD * BIG.entry_bytes + BANK_BYTES + 100))
    namespace = full_banks(server, "a")
    before = usage(server)
    made.clear()
    with pytest.raises(QuotaExceededError, match="bytes"):
        run_through(server.memory.add(namespace, add(namespace, 1, "a")))
    assert not made
    assert usage(server) == before


def test_nothing_is_done_for_a_wrong_add(made: list[RowBytes]) -> None:
    """What is refused has banks grow: its tenant pays for memory that holds nothing."""
    server = Server()
    namespace = full_banks(server, "a")
    before = usage(server)
    made.clear()
    right = add(namespace, 1, "a")
    flat = from_float32(np.zeros((1, 2), np.float32), Dtype.FLOAT32)
    for wrong in (
        replace(right, keys=flat),
        replace(right, keys=from_float32(np.zeros((1, 1, 1, 3), np.float32), Dtype.FLOAT32)),
        replace(right, values=from_float32(np.full((1, 1, 1, 2), np.nan, np.float32), Dtype.FLOAT32)),
        replace(right, lengths=(1, 1)),
        replace(right, lengths=(-5,)),
        replace(right, lengths=(2,)),
        replace(right, layer=9),
        replace(right, streams=("a",) * 5000),
        replace(right, streams=()),
        replace(right, request_id="x" * 5000),
    ):
        with pytest.raises(RecollectError):
            run_through(server.memory.add(namespace, wrong))
    assert not made
    assert usage(server) == before


def test_no_bank_grows_for_an_add_that_is_repeated(made: list[RowBytes]) -> None:
    """A client that did not get its answer, and asks again, pays for a larger buffer that holds nothing."""
    server = Server()
    namespace = full_banks(server, "a", "b")
    filling = replace(add(namespace, HELD, "a"), request_id="once")
    first = run_through(server.memory.add(namespace, filling))
    before = usage(server)
    made.clear()
    assert run_through(server.memory.add(namespace, filling)) == first
    assert not made
    assert usage(server) == before


def test_copies_of_who_ends_are_zeroed(made: list[RowBytes]) -> None:
    """What one stream stored stays in memory that another may get; or it is not stored any more."""
    spec = NamespaceSpec((0,), HEADS, DIM, DIM, capacity=1200, dtype=Dtype.FLOAT32)
    store, whole = CpuDevice().store(spec), slice(0, 600)
    data = from_float32(np.ones((HEADS, 600, DIM), np.float32), Dtype.FLOAT32)
    run_through(store.growing(600, []))
    store.write([Write(whole, whole)], data, data)
    made.clear()
    growing = store.growing(1200, [whole])
    next(growing)
    growing.send(work.moved_to_new(HEADS * DIM * 4 * 100))
    assert made[0].any()
    growing.close()
    assert len(made) == 2
    assert not any(array.any() for array in made)
    slots = np.tile(np.arange(600), (HEADS, 1, 1))
    assert (store.keys(slots).float32() == 1).all()
    assert (store.values(slots).float32() == 1).all()


class OneNamespace:
    """A catalog that has one."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace

    async def get(self, caller: Caller, name: str) -> Namespace:
        del caller, name
        return self._namespace


async def test_a_bank_grows_though_the_caller_leaves() -> None:
    """Who gives an add less time than it takes to copy a bank can try for ever, and never adds again."""
    server = Server()
    namespace = full_banks(server, "a")
    entries, size_bytes = usage(server)
    dispatcher, has_begun, may_go_on = Dispatcher(server.limits), threading.Event(), threading.Event()

    def slowly(of: Namespace, command: Add) -> Steps[Added]:
        steps = server.memory.add(of, command)
        done, taken = next(steps), 0
        try:
            while True:
                yield done
                done, taken = steps.send(1_000_000), taken + 1
                if taken == 10:  # of about fifty
                    has_begun.set()
                    may_go_on.wait(PATIENCE_S)
        except StopIteration as finished:
            added: Added = finished.value
            return added
        finally:
            steps.close()

    upkeep = Upkeep(server.memories, dispatcher, telemetry=NoTelemetry())
    turns = Turns(
        cast("Catalog", OneNamespace(namespace)), server.memory, dispatcher=dispatcher, upkeep=upkeep
    )

    def take() -> Coroutine[None, None, Added]:
        return turns.take(Caller("one"), add(namespace, 1, "a"), slowly, times=Times())

    leaving = asyncio.create_task(take())
    await until(has_begun.is_set)
    leaving.cancel()
    await asyncio.wait([leaving])
    may_go_on.set()
    await until(lambda: not dispatcher.queued())
    assert usage(server) == (entries, size_bytes + HELD * BIG.entry_bytes)
    assert (await take()).evicted == 0
    assert usage(server) == (entries + 1, size_bytes + HELD * BIG.entry_bytes)
    dispatcher.drain()
