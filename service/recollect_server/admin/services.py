"""What the admin API needs; bootstrap puts it together."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from recollect_server.application.audit import AuditLog
from recollect_server.application.commands import Stats
from recollect_server.application.keys import Keys
from recollect_server.application.tenants import Tenants
from recollect_server.domain.audit import Origin
from recollect_server.domain.eviction import Selector
from recollect_server.domain.identity import Caller
from recollect_server.domain.limits import Limits
from recollect_server.domain.ports import Authenticator, Clock
from recollect_server.domain.registry import NamespaceRecord, Registry
from recollect_server.domain.telemetry import NoTelemetry, Telemetry

BODY_BYTES_MAX = 64 * 1024
"""Of a request. The largest sensible one names a thousand streams."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a server needs in order to serve.

    Attributes:
        name: "registry", "draining", ...
        ready: Whether it is as it should be.
        reason: What is wrong, for people, without addresses: whoever reaches the port may read it. "" if
            it is ready.
    """

    name: str
    ready: bool
    reason: str = ""


class Namespaces(Protocol):
    """Namespaces of any tenant, with what they hold. All methods raise errors of the domain's tree."""

    async def require_tenant(self, tenant: str) -> Caller:
        """The tenant as a caller of its own."""
        ...

    async def list(self, tenant: str, *, page_size: int, after: str) -> tuple[list[NamespaceRecord], str]:
        """A page by name, and the name to go on after ("" at the end)."""
        ...

    async def get(self, tenant: str, name: str) -> NamespaceRecord:
        """One of them."""
        ...

    async def stats(self, tenant: str, name: str) -> Stats:
        """What it holds on this server."""
        ...

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
        """Removes entries of some streams, or of all (None); returns how many."""
        ...

    async def delete(self, caller: Caller, name: str, *, origin: Origin) -> None:
        """Deletes it and frees its memory."""
        ...


@dataclass(frozen=True, slots=True)
class AdminServices:
    """What the routes call.

    Attributes:
        authenticator: Tells who a credential belongs to.
        registry: Where answers to POSTs with an idempotency key are remembered.
        tenants: Use cases.
        keys: Use cases.
        audit: Use cases.
        namespaces: Use cases.
        readiness: What this server needs, and whether it has it.
        metrics: The exposition in full, and its content type.
        drain: Has the server finish its work and end; returns at once.
        settings_view: The effective configuration, with `admin.configuration.hidden`.
        telemetry: Told of each call.
        clock: Seconds since the epoch.
        limits: The server's bounds.
        version: Of the server.
        metrics_key: What Prometheus may show in place of an operator key, for /metrics alone; None: nothing.
        body_bytes_max: Of a request.
    """

    authenticator: Authenticator
    registry: Registry
    tenants: Tenants
    keys: Keys
    audit: AuditLog
    namespaces: Namespaces
    readiness: Callable[[], Awaitable[Sequence[Check]]]
    metrics: Callable[[], tuple[bytes, str]]
    drain: Callable[[Origin], Awaitable[None]]
    settings_view: Callable[[], Mapping[str, object]]
    clock: Clock
    limits: Limits
    telemetry: Telemetry = field(default_factory=NoTelemetry)
    version: str = "unknown"
    metrics_key: str | None = field(default=None, repr=False)
    body_bytes_max: int = BODY_BYTES_MAX
