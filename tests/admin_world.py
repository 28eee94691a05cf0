"""The admin API over a real registry in memory, in process or behind a real uvicorn, with keys for all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx
import uvicorn
from fastapi import FastAPI

from recollect_server.admin.app import create_app
from recollect_server.admin.services import AdminServices, Check
from recollect_server.application.audit import AuditLog
from recollect_server.application.authentication import KeyAuthenticator
from recollect_server.application.catalog import Catalog
from recollect_server.application.changes import Changes
from recollect_server.application.commands import Stats
from recollect_server.application.directory import Directory
from recollect_server.application.keys import Keys
from recollect_server.application.tenants import Tenants, no_tenant
from recollect_server.domain.audit import SERVER, Audit, Origin
from recollect_server.domain.eviction import Selector
from recollect_server.domain.identity import ALL_SCOPES, Caller, Scope
from recollect_server.domain.limits import Limits
from recollect_server.domain.registry import NamespaceRecord, Registry
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.telemetry import CallRecord, NoTelemetry
from recollect_server.domain.tenants import Quotas
from recollect_server.registry.sqlite import SqliteRegistry

SPEC = NamespaceSpec(layers=(8,), heads=2, key_dim=4, value_dim=4, capacity=64, dtype=Dtype.FLOAT16)
METRICS_KEY = "prometheus-may-scrape"
UNKNOWN_TOKEN = f"rk_{'ab' * 8}_{'cd' * 32}"


class RecordOnlyNamespaces:
    """Namespaces that are records alone: of what they would hold, it notes what was to be evicted."""

    def __init__(self, directory: Directory, catalog: Catalog, changes: Changes) -> None:
        self._directory = directory
        self._changes = changes
        self._catalog = catalog
        self.evictions: list[tuple[str, str, tuple[str, ...] | None, tuple[int, ...], Selector]] = []
        self.breaks = False

    async def require_tenant(self, tenant: str) -> Caller:
        if await self._directory.tenant(tenant) is None:
            raise no_tenant(tenant)
        return Caller(tenant)

    async def list(self, tenant: str, *, page_size: int, after: str) -> tuple[list[NamespaceRecord], str]:
        return await self._catalog.list(await self.require_tenant(tenant), page_size=page_size, after=after)

    async def get(self, tenant: str, name: str) -> NamespaceRecord:
        return (await self._catalog.get(await self.require_tenant(tenant), name)).record

    async def stats(self, tenant: str, name: str) -> Stats:
        if self.breaks:
            raise RuntimeError("secret detail")
        await self.get(tenant, name)
        return Stats(streams=2, entries=3, bytes=4, banks=())

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
        namespace = await self._catalog.get(await self.require_tenant(tenant), name)
        self._changes.count(tenant, namespace.quotas, origin=origin)
        self.evictions.append((tenant, name, streams, layers, selector))
        audit = Audit(int(time.time() * 1000), origin.actor, origin.source, "namespace.evict", tenant, name)
        await self._directory.registry.append_audit(audit)
        return 5

    async def delete(self, caller: Caller, name: str, *, origin: Origin) -> None:
        await self._catalog.delete(caller, name, origin=origin)


class ToldTelemetry(NoTelemetry):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.calls: list[CallRecord] = []

    def call_ended(self, call: CallRecord) -> None:
        self.calls.append(call)


@dataclass
class World:
    """Two tenants, `acme` and `umbrella`, and their keys.

    Attributes:
        app: The application.
        services: What it was made with.
        tokens: By holder: operator, admin, reader (of acme), umbrella (admin of it), metrics.
        checks: What /readyz is to say.
        drained: Who asked for a drain.
    """

    app: FastAPI
    services: AdminServices
    directory: Directory
    catalog: Catalog
    namespaces: RecordOnlyNamespaces
    telemetry: ToldTelemetry
    tokens: dict[str, str]
    checks: list[Check] = field(default_factory=list)
    drained: list[Origin] = field(default_factory=list)

    def headers(self, holder: str) -> dict[str, str]:
        """The header that a holder sends; none for ""."""
        return {"Authorization": f"Bearer {self.tokens[holder]}"} if holder else {}

    async def add_namespace(self, tenant: str, name: str) -> None:
        """Makes a namespace, as a client would."""
        await self.catalog.create(Caller(tenant), name, spec=SPEC, origin=SERVER)

    def another_server(self) -> FastAPI:
        """A second server's application over the same registry."""
        return create_app(self.services)


@contextlib.asynccontextmanager
async def world(registry: Registry | None = None, *, limits: Limits | None = None) -> AsyncIterator[World]:
    """A world of its own, open while in the context."""
    directory = Directory(
        registry or SqliteRegistry(None, clock=time.time),
        clock=time.time,
        monotonic=time.monotonic,
        poll_s=0.1,
        stale_max_s=1.0,
        cached_max=1000,
        telemetry=NoTelemetry(),
    )
    await directory.start()
    try:
        yield await _furnished(directory, limits or Limits())
    finally:
        await directory.stop()


async def _furnished(directory: Directory, limits: Limits) -> World:
    changes = Changes(monotonic=time.monotonic)
    tenants, keys = Tenants(directory, clock=time.time), Keys(directory, changes=changes, clock=time.time)
    tokens = {
        "metrics": METRICS_KEY,
        "unknown": UNKNOWN_TOKEN,
        "operator": (await keys.issue(None, scopes=frozenset(), origin=SERVER)).token,
    }
    for tenant in ("acme", "umbrella"):
        await tenants.create(tenant, quotas=Quotas(), origin=SERVER)
    for holder, tenant, scopes in (
        ("admin", "acme", ALL_SCOPES),
        ("reader", "acme", frozenset({Scope.READ, Scope.WRITE})),
        ("umbrella", "umbrella", ALL_SCOPES),
    ):
        tokens[holder] = (await keys.issue(tenant, scopes=scopes, origin=SERVER)).token
    catalog = Catalog(directory, changes=changes, limits=limits, clock=time.time)
    namespaces = RecordOnlyNamespaces(directory, catalog, changes)
    telemetry = ToldTelemetry()
    checks, drained = [Check("registry", ready=True)], list[Origin]()

    async def readiness() -> list[Check]:
        return checks

    async def drain(origin: Origin) -> None:
        drained.append(origin)

    services = AdminServices(
        authenticator=KeyAuthenticator(directory, time.time),
        registry=directory.registry,
        tenants=tenants,
        keys=keys,
        audit=AuditLog(directory),
        namespaces=namespaces,
        readiness=readiness,
        metrics=lambda: (b"up 1\n", "text/plain; version=1.0.0; charset=utf-8"),
        drain=drain,
        settings_view=lambda: {"listen": ["127.0.0.1:50051"]},
        clock=time.time,
        limits=limits,
        telemetry=telemetry,
        version="0.0",
        metrics_key=METRICS_KEY,
    )
    app = create_app(services)
    return World(app, services, directory, catalog, namespaces, telemetry, tokens, checks, drained)


def in_process(app: FastAPI, *, address: str = "127.0.0.1") -> httpx.AsyncClient:
    """A client without a socket, that seems to come from an address."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, client=(address, 4711))
    return httpx.AsyncClient(transport=transport, base_url="http://recollect")


@contextlib.asynccontextmanager
async def served(app: FastAPI, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """The base URL of a real uvicorn on a free port, in this event loop."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", lifespan="off", access_log=False, ws="none")
    if tls is not None:
        config.ssl_context_factory = lambda _config, _default: tls
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving
        listening.close()
