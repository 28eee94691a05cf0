"""Namespaces with their memories: what is deleted in the registry is freed on the device."""

from __future__ import annotations

import asyncio
import logging

from recollect_server.application.catalog import Catalog
from recollect_server.application.changes import Changes
from recollect_server.application.commands import Describe, Evict, Stats
from recollect_server.application.directory import Directory
from recollect_server.application.dispatch import Dispatcher, Job
from recollect_server.application.memories import Memories
from recollect_server.application.memory import Memory
from recollect_server.application.turns import Times, Turns
from recollect_server.domain import work
from recollect_server.domain.audit import Audit, Origin
from recollect_server.domain.errors import RecollectError, TenantNotFoundError
from recollect_server.domain.eviction import Selector, in_words
from recollect_server.domain.identity import Caller
from recollect_server.domain.limits import Limits
from recollect_server.domain.ports import Clock
from recollect_server.domain.registry import NamespaceRecord
from recollect_server.domain.spec import is_name
from recollect_server.domain.telemetry import Telemetry

log = logging.getLogger(__name__)


class Namespaces:
    """What concerns a namespace's record and its memory at once.

    Args:
        catalog: The records.
        memories: What they hold, on this server.
        memory: The use cases on it.
        turns: At the device.
        dispatcher: Of the device.
        directory: Of tenants.
        changes: Bounds how often a tenant has entries removed by its own key.
        limits: The server's bounds.
        clock: Seconds since the epoch.
        telemetry: Told what is freed.
    """

    def __init__(
        self,
        catalog: Catalog,
        memories: Memories,
        *,
        memory: Memory,
        turns: Turns,
        dispatcher: Dispatcher,
        directory: Directory,
        changes: Changes,
        limits: Limits,
        clock: Clock,
        telemetry: Telemetry,
    ) -> None:
        self._catalog = catalog
        self._memories = memories
        self._memory = memory
        self._turns = turns
        self._dispatcher = dispatcher
        self._directory = directory
        self._changes = changes
        self._limits = limits
        self._clock = clock
        self._telemetry = telemetry

    async def require_tenant(self, tenant: str) -> Caller:
        """The tenant as a caller of its own, for operators.

        Raises:
            TenantNotFoundError: There is none of this name.
        """
        if await self._directory.tenant(tenant) is None:
            raise TenantNotFoundError(f"there is no tenant {tenant!r}", argument="tenant")
        return Caller(tenant)

    async def get(self, tenant: str, name: str) -> NamespaceRecord:
        """A tenant's namespace.

        Raises:
            NotFoundError: There is no such tenant, or it has no such namespace.
        """
        return (await self._catalog.get(await self.require_tenant(tenant), name)).record

    async def list(self, tenant: str, *, page_size: int, after: str) -> tuple[list[NamespaceRecord], str]:
        """A page of a tenant's namespaces, and the name to go on after. Raises as `Catalog.list`."""
        return await self._catalog.list(await self.require_tenant(tenant), page_size=page_size, after=after)

    async def stats(self, tenant: str, name: str) -> Stats:
        """What a namespace holds on this server.

        Raises:
            NotFoundError: There is no such tenant or namespace.
        """
        caller = await self.require_tenant(tenant)
        return await self.describe(caller, Describe(name), times=Times())

    async def describe(self, caller: Caller, command: Describe, *, times: Times) -> Stats:
        """The same for a caller of the tenant. Raises as `Memory.describe`."""
        return await self._turns.take(caller, command, self._memory.describe, times=times)

    async def evict(
        self,
        tenant: str,
        name: str,
        *,
        streams: tuple[str, ...] | None,
        layers: tuple[int, ...],
        selector: Selector,
        origin: Origin,
    ) -> int:
        """Removes entries of some streams, or of all (None); returns how many, and notes it in the audit log.

        Counted as a change: there may be no end of them, and each is a line of that log.

        Raises:
            RecollectError: Of the domain's tree.
        """
        caller = await self.require_tenant(tenant)
        namespace = await self._catalog.get(caller, name)
        self._changes.count(tenant, namespace.quotas, origin=origin)
        # Before the act: an eviction without its line in the log would be worse than a line too many.
        await self._directory.registry.append_audit(
            self._audit(origin, "namespace.evict", tenant=tenant, target=name, details=in_words(selector))
        )
        memory = self._memories.peek(namespace.record)
        names = streams if streams is not None else tuple(memory.stream_names if memory else ())
        evicted = 0
        for first in range(0, len(names), self._limits.rows_max):
            part = names[first : first + self._limits.rows_max]
            command = Evict(name, part, selector=selector, layers=layers, missing_ok=streams is None)
            evicted += await self._turns.take(caller, command, self._memory.evict, times=Times())
        self._telemetry.evicted(tenant, evicted, cause="request")
        return evicted

    async def delete(self, caller: Caller, name: str, *, missing_ok: bool = False, origin: Origin) -> None:
        """Deletes a namespace and frees its memory.

        Raises:
            NamespaceNotFoundError: There is none, and `missing_ok` is false.
        """
        record = await self._directory.namespace(caller.tenant, name) if is_name(name, self._limits) else None
        deleted = await self._catalog.delete(caller, name, missing_ok=missing_ok, origin=origin)
        if deleted and record is not None:
            await self._free(caller.tenant, name, record.uid)

    async def reconcile(self) -> bool:
        """Frees the memories of namespaces that another server deleted, or made anew.

        Returns:
            Whether all were compared; False: the registry is away, and this is to be asked again.
        """
        for tenant, name, uid in self._memories.held():
            try:
                record = await self._directory.namespace(tenant, name)
            except RecollectError:
                return False
            if record is None or record.uid != uid:
                log.debug("freeing a namespace that is gone")
                await self._free(tenant, name, uid)
        return True

    async def _free(self, tenant: str, name: str, uid: str) -> None:
        cost = work.CALL + work.moved(self._memories.bytes_of(tenant, name))
        # Not to be refused: what is deleted must go, however much waits.
        steps = self._memories.drop(tenant, name, uid=uid)
        job = Job(tenant, steps, cost=cost, is_refusable=False, lane=name)
        # Nor to be given up with the call that deleted it.
        entries = await asyncio.shield(asyncio.wrap_future(self._dispatcher.submit(job)))
        self._telemetry.evicted(tenant, entries, cause="delete")

    def _audit(self, origin: Origin, action: str, *, tenant: str, target: str, details: str) -> Audit:
        now_ms = int(self._clock() * 1000)
        return Audit(now_ms, origin.actor, origin.source, action, tenant, target, details)
