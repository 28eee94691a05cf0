"""The whole server: core, gRPC, admin API, and what tells about them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from recollect_server.admin.http import HttpServer
from recollect_server.admin.services import Check
from recollect_server.application.memories import Memories
from recollect_server.domain.audit import Audit, Origin
from recollect_server.domain.errors import RecollectError
from recollect_server.domain.limits import Limits
from recollect_server.domain.ports import Clock
from recollect_server.lifecycle import Core
from recollect_server.observability.state import DeviceState, TenantState
from recollect_server.rpc.server import RpcServer

log = logging.getLogger(__name__)


class State:
    """What metrics and probes ask of a running server. Implements `observability.state.ServerState`.

    Args:
        core: Of the server.
        memories: On its device.
        device_name: For people.
        limits: The server's bounds.
    """

    def __init__(self, core: Core, memories: Memories, *, device_name: str, limits: Limits) -> None:
        self._core = core
        self._memories = memories
        self._device_name = device_name
        self._limits = limits

    def tenants(self) -> Mapping[str, TenantState]:
        """See `ServerState.tenants`."""
        queued = self._core.dispatcher.queued()
        namespaces: dict[str, int] = {}
        for tenant, _, _ in self._memories.held():
            namespaces[tenant] = namespaces.get(tenant, 0) + 1
        states: dict[str, TenantState] = {}
        for tenant in namespaces.keys() | queued.keys():
            usage = self._memories.usage(tenant)
            calls, cost = queued.get(tenant, (0, 0))
            states[tenant] = TenantState(
                bytes=usage.bytes,
                entries=usage.entries,
                namespaces=namespaces.get(tenant, 0),
                streams=usage.streams,
                calls_queued=calls,
                cost_queued=cost,
            )
        return states

    def devices(self) -> Sequence[DeviceState]:
        """See `ServerState.devices`."""
        used = self._memories.total.bytes
        return [DeviceState(self._device_name, bytes_allocated=used, bytes_max=self._limits.memory_bytes_max)]

    def is_ready(self) -> bool:
        """See `ServerState.is_ready`."""
        return not self.is_draining() and self.registry_is_reachable()

    def is_draining(self) -> bool:
        """See `ServerState.is_draining`."""
        return self._core.endpoint.is_draining

    def registry_is_reachable(self) -> bool:
        """See `ServerState.registry_is_reachable`."""
        return not self._core.directory.unavailable_reason

    async def checks(self) -> list[Check]:
        """What /readyz answers."""
        draining, away = self.is_draining(), self._core.directory.unavailable_reason
        return [
            Check("registry", not away, "the registry of tenants and keys does not answer" if away else ""),
            Check("draining", not draining, "the server is shutting down" if draining else ""),
        ]


class Server:
    """Everything that a process serves.

    Args:
        core: What answers.
        rpc: gRPC.
        http: The admin API; None: not served.
        on_stop: Called last, to write out what telemetry holds back.
        grace_s: For calls in flight when it stops.
    """

    def __init__(
        self,
        core: Core,
        rpc: RpcServer,
        *,
        http: HttpServer | None,
        on_stop: Callable[[], None],
        grace_s: float,
    ) -> None:
        self._core = core
        self._rpc = rpc
        self._http = http
        self._on_stop = on_stop
        self._grace_s = grace_s

    async def start(self) -> tuple[list[str], list[str]]:
        """Opens the registry, binds, and serves.

        Returns:
            Addresses of gRPC, and of the admin API.

        Raises:
            OSError: An address cannot be bound.
            ValueError: The registry is of no use.
        """
        await self._core.start()
        try:
            admin = await self._http.start() if self._http is not None else []
            return await self._rpc.start(), admin
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Drains: no new calls, those in flight get their grace, then everything is closed."""
        ends_s = time.monotonic() + self._grace_s
        await self._rpc.stop(grace_s=self._grace_s)
        await self._core.stop()
        if self._http is not None:  # last, so that probes and metrics see the drain
            await self._http.stop(grace_s=max(0.0, ends_s - time.monotonic()))
        await asyncio.to_thread(self._on_stop)


def drain_by(
    core: Core, on_drain: Callable[[], None], *, clock: Clock
) -> Callable[[Origin], Awaitable[None]]:
    """What `POST /api/v1/server:drain` does.

    Args:
        core: Of the server.
        on_drain: Has the process end.
        clock: Seconds since the epoch.
    """

    async def drain(origin: Origin) -> None:
        now_ms = int(clock() * 1000)
        try:
            await core.directory.registry.append_audit(
                Audit(now_ms, origin.actor, origin.source, "server.drain", "", "server")
            )
        except RecollectError as error:
            log.warning("draining without a line in the audit log: %s", error)
        core.drain()
        on_drain()

    return drain
