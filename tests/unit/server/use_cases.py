"""The use cases without a transport, for tests."""

from __future__ import annotations

import numpy as np

from recollect_server.application.commands import (
    Add,
    Describe,
    Evict,
    Namespace,
    Stats,
)
from recollect_server.application.memories import Memories
from recollect_server.application.memory import Memory
from recollect_server.domain.arrays import from_float32
from recollect_server.domain.eviction import Everything, OlderThan, Oldest
from recollect_server.domain.limits import Limits
from recollect_server.domain.registry import NamespaceRecord
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.steps import Result, Steps, run_through
from recollect_server.domain.tenants import Quotas
from recollect_server.engine.cpu import CpuDevice

SPEC = NamespaceSpec(layers=(0, 1), heads=1, key_dim=2, value_dim=2, capacity=100, dtype=Dtype.FLOAT32)
ENTRY_BYTES = SPEC.entry_bytes
BANK_BYTES = 4096
"""Counted for each bank beside its entries."""


class Server:
    """The use cases on a clock that the test moves."""

    def __init__(self, *, quotas: Quotas | None = None, **limits: int) -> None:
        self.now_s = 1000.0
        self.limits = Limits(**limits)
        self.quotas = quotas or Quotas()
        self.memories = Memories(CpuDevice(), limits=self.limits, clock=lambda: self.now_s)
        self.memory = Memory(self.memories, limits=self.limits, clock=lambda: self.now_s)

    def namespace(self, name: str = "n", *, tenant: str = "one") -> Namespace:
        """As the catalog finds it."""
        record = NamespaceRecord(tenant, name, SPEC, created_at_ms=1_000_000, uid=f"{tenant}/{name}")
        return Namespace(record, self.quotas)

    def add(
        self, stream: str, tokens: int, *, tenant: str = "one", name: str = "n", request_id: str = ""
    ) -> int:
        """Adds ones to a stream; returns its first id."""
        array = from_float32(np.ones((1, 1, tokens, 2), dtype=np.float32), Dtype.FLOAT32)
        command = Add(name, 0, (stream,), keys=array, values=array, request_id=request_id)
        return run_through(self.memory.add(self.namespace(name, tenant=tenant), command)).first_ids[0]

    def evict(self, stream: str, selector: Everything | OlderThan | Oldest, *, name: str = "n") -> int:
        """Evicts from a stream."""
        return run_through(self.memory.evict(self.namespace(name), Evict(name, (stream,), selector)))

    def stats(self, *streams: str) -> Stats:
        """Of the namespace."""
        return run_through(self.memory.describe(self.namespace(), Describe("n", streams)))


def steps_of(steps: Steps[Result], budget: int, taken: list[int] | None = None) -> list[int]:
    """Takes the steps; what each of them reports."""
    taken = [] if taken is None else taken
    taken.append(next(steps))
    try:
        while True:
            taken.append(steps.send(budget))
    except StopIteration:
        return taken
