"""Namespaces: made, found, listed and deleted, each for its own tenant alone."""

from __future__ import annotations

from recollect_server.application.commands import BankStats, Stats
from recollect_server.domain.errors import (
    InvalidArgumentError,
    MemoryExhaustedError,
    NamespaceExistsError,
    NamespaceNotFoundError,
    TooManyNamespacesError,
)
from recollect_server.domain.identity import Caller
from recollect_server.domain.limits import Limits
from recollect_server.domain.memory import NamespaceMemory
from recollect_server.domain.ports import Clock, Device, NamespaceRecord, NamespaceRegistry
from recollect_server.domain.spec import NamespaceSpec, validate_name

SEQUENCES_PER_MS = 1024
"""A namespace's first id is its creation time in ms times this, so that ids stay unique if it is made
again, by this process or by the next; a stream would have to take a million entries a second to catch up."""


class Catalog:
    """The namespaces of all tenants, and their memories on one device.

    Not thread-safe: the device's dispatcher thread owns it.

    Args:
        registry: Which namespaces there are.
        device: Where their banks live.
        limits: The server's bounds.
        clock: Seconds since the epoch.
    """

    def __init__(self, registry: NamespaceRegistry, device: Device, *, limits: Limits, clock: Clock) -> None:
        self._registry = registry
        self._device = device
        self._limits = limits
        self._clock = clock
        self._memories: dict[tuple[str, str], NamespaceMemory] = {}
        self._sequence_floor = 0

    def create(
        self, caller: Caller, name: str, *, spec: NamespaceSpec, exist_ok: bool = False
    ) -> NamespaceRecord:
        """Makes a namespace, or returns the one there is with `exist_ok`.

        Raises:
            InvalidArgumentError: The name or the spec is wrong.
            NamespaceExistsError: It exists, with another spec or without `exist_ok`.
            TooManyNamespacesError: The tenant has as many as it may.
        """
        validate_name("name", name, self._limits)
        spec.validate(self._limits)
        existing = self._registry.get(caller.tenant, name)
        if existing is not None:
            return _same(existing, spec, exist_ok=exist_ok)
        if self._registry.count(caller.tenant) >= self._limits.namespaces_max:
            raise TooManyNamespacesError(
                f"there are {self._limits.namespaces_max} namespaces, which is the most; delete one",
                argument="name",
            )
        record = NamespaceRecord(caller.tenant, name, spec, created_at_ms=int(self._clock() * 1000))
        self._registry.create(record)
        return record

    def get(self, caller: Caller, name: str) -> NamespaceRecord:
        """The caller's namespace of this name.

        Raises:
            NamespaceNotFoundError: There is none, or it is another tenant's: the answer is the same.
        """
        # The one line that keeps tenants apart: every look-up passes here, by the caller's tenant.
        record = self._registry.get(caller.tenant, name)
        if record is None:
            raise NamespaceNotFoundError(
                f"there is no namespace {name!r}; create it first", argument="namespace"
            )
        return record

    def list(self, caller: Caller, *, page_size: int, after: str) -> tuple[list[NamespaceRecord], str]:
        """A page of the caller's namespaces by name, and the name to go on after ("" at the end).

        Raises:
            InvalidArgumentError: page_size is negative or too large.
        """
        if not 0 <= page_size <= self._limits.page_size_max:
            raise InvalidArgumentError(
                "page_size", f"is {page_size}; it must be from 0 (default) to {self._limits.page_size_max}"
            )
        size = page_size or self._limits.page_size_default
        records = self._registry.list(caller.tenant, after=after, limit=size + 1)
        page = records[:size]
        return page, page[-1].name if len(records) > size else ""

    def delete(self, caller: Caller, name: str, *, missing_ok: bool = False) -> None:
        """Deletes a namespace and frees its memory.

        Raises:
            NamespaceNotFoundError: There is none, and `missing_ok` is false.
        """
        if not self._registry.delete(caller.tenant, name):
            if missing_ok:
                return
            self.get(caller, name)
        memory = self._memories.pop((caller.tenant, name), None)
        if memory is not None:
            self._sequence_floor = max(self._sequence_floor, memory.high_water)
            memory.clear()

    def memory(self, caller: Caller, name: str) -> NamespaceMemory:
        """The memory of the caller's namespace.

        Raises:
            NamespaceNotFoundError: As for `get`.
        """
        record = self.get(caller, name)
        memory = self._memories.get((record.tenant, record.name))
        if memory is None:
            first = max(record.created_at_ms * SEQUENCES_PER_MS, self._sequence_floor)
            memory = NamespaceMemory(name, record.spec, self._device, self._limits, first_sequence=first)
            self._memories[record.tenant, record.name] = memory
        return memory

    def require_bytes(self, more_bytes: int) -> None:
        """Raises MemoryExhaustedError if so much more for keys and values would be too much."""
        used = sum(memory.allocated_bytes for memory in self._memories.values()) if more_bytes > 0 else 0
        if used + more_bytes > self._limits.memory_bytes_max:
            raise MemoryExhaustedError(
                f"this call needs {more_bytes:,} bytes more for keys and values; {used:,} of "
                f"{self._limits.memory_bytes_max:,} are in use. Evict, or delete a namespace"
            )

    def stats(self, caller: Caller, name: str, *, streams: tuple[str, ...] = ()) -> Stats:
        """Totals of a namespace, and details of the streams named.

        Raises:
            NamespaceNotFoundError: As for `get`.
            StreamNotFoundError: A stream named does not exist.
        """
        memory = self.memory(caller, name)
        for stream in streams:
            memory.bank(stream, memory.spec.layers[0])
        banks = [
            BankStats(
                stream=stream,
                layer=layer,
                entries=bank.ring.count,
                first_id=bank.ring.first_id,
                next_sequence=bank.ring.next_sequence,
                bytes=bank.allocated_bytes,
            )
            for stream, layer, bank in memory.banks()
        ]
        return Stats(
            streams=memory.streams,
            entries=sum(b.entries for b in banks),
            bytes=sum(b.bytes for b in banks),
            banks=tuple(b for b in banks if b.stream in streams),
        )


def _same(existing: NamespaceRecord, spec: NamespaceSpec, *, exist_ok: bool) -> NamespaceRecord:
    difference = existing.spec.difference(spec)
    if difference:
        raise NamespaceExistsError(
            f"namespace {existing.name!r} exists with another spec: {difference}. A spec cannot change: use "
            "another name, or delete it first",
            argument="spec",
        )
    if not exist_ok:
        raise NamespaceExistsError(
            f"namespace {existing.name!r} exists already; pass exist_ok to use it", argument="name"
        )
    return existing
