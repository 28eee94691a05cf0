"""Which memory belongs to which record, and what a memory weighs."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from recollect_server.application.commands import Add, Namespace
from recollect_server.application.memories import SEQUENCES_PER_MS, Memories
from recollect_server.application.memory import Memory
from recollect_server.domain.arrays import from_float32
from recollect_server.domain.errors import NamespaceNotFoundError
from recollect_server.domain.limits import Limits
from recollect_server.domain.memory import NamespaceMemory
from recollect_server.domain.registry import NamespaceRecord
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.steps import run_through
from recollect_server.domain.tenants import Quotas
from recollect_server.engine.cpu import CpuDevice

SPEC = NamespaceSpec(layers=(0,), heads=1, key_dim=8, value_dim=8, capacity=4096, dtype=Dtype.FLOAT32)


def record(uid: str, *, tenant: str = "t", name: str = "n", created_at_ms: int = 1000) -> NamespaceRecord:
    """As the registry has it."""
    return NamespaceRecord(tenant, name, SPEC, created_at_ms=created_at_ms, uid=uid)


@pytest.fixture
def memories() -> Memories:
    """None yet."""
    return Memories(CpuDevice(), limits=Limits(), clock=lambda: 1.0)


def add(memories: Memories, to: NamespaceRecord, tokens: int, *, request_id: str = "") -> int:
    """Adds entries; returns the first id."""
    array = from_float32(np.ones((1, 1, tokens, 8), np.float32), Dtype.FLOAT32)
    command = Add(to.name, 0, ("s",), array, array, request_id=request_id)
    memory = Memory(memories, limits=Limits(), clock=lambda: 1.0)
    return run_through(memory.add(Namespace(to, Quotas()), command)).first_ids[0]


def test_a_memory_is_its_records(memories: Memories) -> None:
    """Two tenants, or two namespaces, share a memory; or one is made by looking."""
    assert memories.peek(record("u")) is None
    mine = memories.of(record("u"))
    assert isinstance(mine, NamespaceMemory)
    assert memories.of(record("u")) is mine
    assert memories.peek(record("u")) is mine
    assert memories.peek(record("v")) is None
    assert memories.of(record("w", tenant="other")) is not mine
    assert memories.of(record("x", name="m")) is not mine
    assert sorted(memories.held()) == [("other", "n", "w"), ("t", "m", "x"), ("t", "n", "u")]


def test_a_namespace_made_anew_begins_empty(memories: Memories) -> None:
    """What the earlier namespace of this name stored is found in the new one, or stays allocated."""
    first = add(memories, record("u"), 10)
    assert first == 1000 * SEQUENCES_PER_MS
    assert add(memories, record("v"), 5) == first + 10
    assert memories.total.entries == memories.usage("t").entries == 5
    assert memories.held() == [("t", "n", "v")]


@pytest.mark.parametrize("how", ["dropped", "replaced", "replaced unseen"])
def test_a_late_call_does_not_bring_a_namespace_back(memories: Memories, how: str) -> None:
    """A call that was on its way when its namespace was deleted clears the new one, or revives the old."""
    old, new = record("u"), record("v", created_at_ms=2000)
    if how != "replaced unseen":
        add(memories, old, 3)
    if how == "dropped":
        assert run_through(memories.drop("t", "n", uid="u")) == 3
    else:
        add(memories, new, 4)
    with pytest.raises(NamespaceNotFoundError):
        memories.of(old)
    assert memories.total.entries == (0 if how == "dropped" else 4)


def test_a_drop_by_uid_spares_the_new_namespace(memories: Memories) -> None:
    """A deletion that arrives late frees the namespace that was made since."""
    add(memories, record("v", created_at_ms=2000), 4)
    assert run_through(memories.drop("t", "n", uid="u")) == 0
    assert run_through(memories.drop("t", "other", uid="v2")) == 0
    with pytest.raises(NamespaceNotFoundError):
        memories.of(record("u"))
    assert run_through(memories.drop("t", "n", uid="v")) == 4


def test_ids_do_not_come_back(memories: Memories) -> None:
    """A namespace made again in the same ms, or by a clock set back, gives out ids of the one before."""
    first = add(memories, record("u"), 5)
    run_through(memories.drop("t", "n", uid="u"))
    assert add(memories, record("v"), 5) == first + 5
    run_through(memories.drop("t", "n", uid="v"))
    assert add(memories, record("w", created_at_ms=500), 5) == first + 10


def test_ids_do_not_come_back_after_a_restart() -> None:
    """A server that lost its memories gives their ids to other entries, and a backward pass uses those."""
    records, now_s = record("u", created_at_ms=1000), [1.0]

    def process() -> Memories:
        return Memories(CpuDevice(), limits=Limits(), clock=lambda: now_s[0])

    last = add(process(), records, 500) + 500
    now_s[0] = 2.0
    assert add(process(), records, 5) >= last


def test_nothing_is_left_of_a_tenant_without_namespaces(memories: Memories) -> None:
    """Bookkeeping and answers of tenants that are gone pile up, or one that remains loses its answers."""
    first = add(memories, record("u"), 5, request_id="r")
    add(memories, record("m", name="m"), 5)
    assert add(memories, record("u"), 5, request_id="r") == first
    run_through(memories.drop("t", "m", uid="m"))
    assert add(memories, record("u"), 5, request_id="r") == first
    run_through(memories.drop("t", "n", uid="u"))
    assert memories.usage("t").bytes == memories.total.bytes == memories.total.streams == 0
    assert not memories._usages
    assert not memories._namespaces
    assert not memories.answered._answers


def test_an_idle_namespace_is_light(memories: Memories) -> None:
    """A thousand small tenants need much more memory than what they store (issue: 64 KiB each)."""
    tokens, namespaces = 512, 20
    add(memories, record("warm", tenant="warm"), 1)
    records = [record(f"u{i}", tenant=f"t{i}") for i in range(namespaces)]
    tracemalloc.start()
    for each in records:
        for _ in range(4096 // tokens):
            add(memories, each, tokens)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    data = sum(memories.usage(each.tenant).bytes for each in records)
    assert data == namespaces * (4096 * SPEC.entry_bytes + 4096)
    assert (held - data) / namespaces < 16 * 1024
