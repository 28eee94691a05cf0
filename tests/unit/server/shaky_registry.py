"""A real registry that goes away, or is slow, when a test says so."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

from recollect_server.application.directory import Directory
from recollect_server.domain.audit import Audit
from recollect_server.domain.credentials import Key, Presented, digest_of, new_token
from recollect_server.domain.errors import RegistryUnavailableError
from recollect_server.domain.identity import ALL_SCOPES
from recollect_server.domain.registry import NamespaceRecord
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.telemetry import NoTelemetry
from recollect_server.domain.tenants import Tenant
from recollect_server.registry.sqlite import SqliteRegistry

AUDIT = Audit(at_ms=0, actor="server", source="", action="test", tenant="", target="")
SPEC = NamespaceSpec(layers=(0,), heads=1, key_dim=2, value_dim=2, capacity=9, dtype=Dtype.FLOAT32)
POLL_S = 0.01
PATIENCE_S = 30.0


class ShakyRegistry(SqliteRegistry):
    """In memory.

    Attributes:
        away: The error that every call ends with; None: it is there.
        open_gate: Reads of records wait while it is not set.
        reads: How often each record was read, by name.
        in_flight_most: Reads that were under way at once.
        touched: What was written by `touch_keys`.
        polls: How often its version was asked for.
    """

    def __init__(self) -> None:
        super().__init__(None, clock=lambda: 0.0)
        self.away: Exception | None = None
        self.open_gate = asyncio.Event()
        self.open_gate.set()
        self.reads: Counter[object] = Counter()
        self.touched: dict[str, int] = {}
        self.polls = 0
        self.in_flight = 0
        self.in_flight_most = 0

    def go_away(self) -> None:
        self.away = RegistryUnavailableError("the test took it away")

    async def open(self) -> None:
        await self._come_through()
        await super().open()

    async def version(self) -> str:
        await self._come_through()
        self.polls += 1
        return await super().version()

    async def tenant(self, name: str) -> Tenant | None:
        await self._read(name)
        return await super().tenant(name)

    async def key(self, key_id: str) -> Key | None:
        await self._read(key_id)
        return await super().key(key_id)

    async def namespace(self, tenant: str, name: str) -> NamespaceRecord | None:
        await self._read((tenant, name))
        return await super().namespace(tenant, name)

    async def touch_keys(self, last_used_at_ms: Mapping[str, int]) -> None:
        await self._come_through()
        self.touched.update(last_used_at_ms)
        await super().touch_keys(last_used_at_ms)

    async def _read(self, name: object) -> None:
        self.reads[name] += 1
        self.in_flight += 1
        self.in_flight_most = max(self.in_flight_most, self.in_flight)
        try:
            await self.open_gate.wait()
            await self._come_through()
        finally:
            self.in_flight -= 1

    async def _come_through(self) -> None:
        if self.away is not None:
            raise self.away


class Counted(NoTelemetry):
    """Counts the fallbacks."""

    def __init__(self) -> None:
        self.fallbacks: Counter[str] = Counter()

    def fell_back(self, kind: str) -> None:
        self.fallbacks[kind] += 1


class World:
    """A directory over a shaky registry, on clocks that the test moves."""

    def __init__(self, *, poll_s: float = POLL_S, stale_max_s: float = 60.0, cached_max: int = 100) -> None:
        self.now_s = 1000.0
        self.registry = ShakyRegistry()
        self.telemetry = Counted()
        self.directory = Directory(
            self.registry,
            clock=lambda: self.now_s,
            monotonic=lambda: self.now_s,
            poll_s=poll_s,
            stale_max_s=stale_max_s,
            cached_max=cached_max,
            telemetry=self.telemetry,
        )

    async def tenant(self, name: str = "one", *, disabled: bool = False) -> Tenant:
        """Creates a tenant behind the directory's back, as another server would."""
        tenant = Tenant(name, created_at_ms=0, disabled=disabled)
        await self.registry.create_tenant(tenant, audit=AUDIT)
        return tenant

    async def key(self, tenant: str | None = "one", *, expires_at_ms: int | None = None) -> tuple[Key, str]:
        """Creates a key in the same way; with the token that shows it."""
        presented, token = new_token()
        key = key_of(presented, tenant, expires_at_ms=expires_at_ms)
        await self.registry.create_key(key, audit=AUDIT)
        return key, token

    async def namespace(self, name: str, tenant: str = "one") -> None:
        """Creates a namespace in the same way."""
        record = NamespaceRecord(tenant, name, SPEC, created_at_ms=0, uid=name)
        await self.registry.create_namespace(record, at_most=100, audit=AUDIT)


def key_of(presented: Presented, tenant: str | None, *, expires_at_ms: int | None) -> Key:
    """What a registry keeps of a key."""
    return Key(
        key_id=presented.key_id,
        tenant=tenant,
        digest=digest_of(presented.secret),
        scopes=frozenset() if tenant is None else ALL_SCOPES,
        label="",
        created_at_ms=0,
        expires_at_ms=expires_at_ms,
    )


async def until(condition: Callable[[], object]) -> None:
    """Waits for what happens in the background."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)
