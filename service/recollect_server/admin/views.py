"""What the admin API takes and gives: namespaces, the audit log, the server itself."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, JsonValue
from pydantic.config import JsonDict

from recollect_server.admin.schemas import TENANT_EXAMPLE, TIME_EXAMPLE, Body
from recollect_server.application.commands import Stats
from recollect_server.domain import eviction
from recollect_server.domain.audit import AuditEntry
from recollect_server.domain.registry import NamespaceRecord

Count = Annotated[int, Field(ge=0, le=2**53)]
LAYERS_MAX, STREAMS_MAX = 4096, 1024

# ---- namespaces ----

_NAMESPACE_EXAMPLE: JsonDict = {
    "tenant": TENANT_EXAMPLE,
    "name": "team/run-7",
    "created_at_ms": TIME_EXAMPLE,
    "spec": {
        "layers": [8],
        "heads": 8,
        "key_dim": 64,
        "value_dim": 64,
        "capacity": 65_536,
        "dtype": "float16",
        "value_dtype": "float16",
        "index": "auto",
        "recall": 0.95,
    },
}


class SpecView(Body):
    """The shape of a namespace's memories."""

    layers: list[int]
    heads: int
    key_dim: int
    value_dim: int
    capacity: int = Field(description="entries per stream and layer")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(description="of stored keys and values")
    value_dtype: Literal["float32", "float16", "bfloat16", "int8"] = Field(description="of stored values")
    index: Literal["exact", "ivf", "auto"] = Field(description="what answers reads")
    recall: float = Field(description="share of the true top_k that reads find on average")


class NamespaceView(Body):
    """A namespace."""

    model_config = ConfigDict(json_schema_extra={"examples": [_NAMESPACE_EXAMPLE]})

    tenant: str
    name: str
    created_at_ms: int
    spec: SpecView

    @classmethod
    def of(cls, record: NamespaceRecord) -> Self:
        """For the wire."""
        spec = record.spec
        return cls(
            tenant=record.tenant,
            name=record.name,
            created_at_ms=record.created_at_ms,
            spec=SpecView(
                layers=list(spec.layers),
                heads=spec.heads,
                key_dim=spec.key_dim,
                value_dim=spec.value_dim,
                capacity=spec.capacity,
                dtype=spec.dtype.value,
                value_dtype=spec.stored_values.value,
                index=spec.index.value,
                recall=spec.recall,
            ),
        )


class NamespacePage(Body):
    """Some namespaces of a tenant, by name."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [_NAMESPACE_EXAMPLE], "next_page_token": ""}]}
    )

    items: list[NamespaceView]
    next_page_token: str = Field(description='for the next page; "" at the end')


class StatsView(Body):
    """What a namespace holds on this server."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"streams": 2, "entries": 4096, "bytes": 8_388_608}]}
    )

    streams: int
    entries: int
    bytes: int = Field(description="allocated for keys, values and indexes, and 4 KiB for each bank")

    @classmethod
    def of(cls, stats: Stats) -> Self:
        """For the wire; nothing of single streams."""
        return cls(streams=stats.streams, entries=stats.entries, bytes=stats.bytes)


class Oldest(Body):
    """So many entries of each stream and layer, the oldest first."""

    kind: Literal["oldest"]
    entries: Count


class BeforeSequence(Body):
    """All entries whose id is smaller."""

    kind: Literal["before_sequence"]
    sequence: Count


class OlderThan(Body):
    """All entries that were added longer ago than this."""

    kind: Literal["older_than"]
    age_s: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]


class Everything(Body):
    """All entries; the streams are forgotten and their memory is freed."""

    kind: Literal["all"]


class EvictEntries(Body):
    """Which entries are to go."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"streams": ["doc-1"], "selector": {"kind": "oldest", "entries": 512}}]
        }
    )

    selector: Oldest | BeforeSequence | OlderThan | Everything = Field(discriminator="kind")
    streams: list[str] | None = Field(
        default=None, min_length=1, max_length=STREAMS_MAX, description="null: all streams"
    )
    layers: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] = Field(
        default_factory=list, max_length=LAYERS_MAX, description="empty: all layers"
    )

    def to_selector(self) -> eviction.Selector:
        """As the domain has it."""
        match self.selector:
            case Oldest(entries=entries):
                return eviction.Oldest(entries)
            case BeforeSequence(sequence=sequence):
                return eviction.BeforeSequence(sequence)
            case OlderThan(age_s=age_s):
                return eviction.OlderThan(age_s)
            case Everything():
                return eviction.Everything()


class EvictedView(Body):
    """What went."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"evicted": 512}]})

    evicted: int = Field(description="entries, over all streams and layers")


# ---- the audit log ----

_AUDIT_EXAMPLE: JsonDict = {
    "number": 42,
    "at_ms": TIME_EXAMPLE,
    "actor": "operator:0123456789abcdef",
    "source": "127.0.0.1",
    "action": "key.revoke",
    "tenant": TENANT_EXAMPLE,
    "target": "fedcba9876543210",
    "details": "read,write; label 'training cluster'",
}


class AuditView(Body):
    """One administrative change."""

    model_config = ConfigDict(json_schema_extra={"examples": [_AUDIT_EXAMPLE]})

    number: int = Field(description="ascends; the place in the log")
    at_ms: int
    actor: str = Field(description='"operator:<key id>", "tenant:<tenant>:<key id>" or "server"')
    source: str = Field(description="address that the call came from")
    action: str
    tenant: str = Field(description='whom it concerns, or ""')
    target: str = Field(description="what was changed")
    details: str

    @classmethod
    def of(cls, entry: AuditEntry) -> Self:
        """For the wire."""
        audit = entry.audit
        return cls(
            number=entry.number,
            at_ms=audit.at_ms,
            actor=audit.actor,
            source=audit.source,
            action=audit.action,
            tenant=audit.tenant,
            target=audit.target,
            details=audit.details,
        )


class AuditPage(Body):
    """Some entries of the audit log, the newest first."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [_AUDIT_EXAMPLE], "next_page_token": ""}]}
    )

    items: list[AuditView]
    next_page_token: str = Field(description='for the next page; "" at the end')


# ---- the server ----


class Alive(Body):
    """The process answers."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"alive": True}]})

    alive: Literal[True] = True


class CheckView(Body):
    """One thing that a server needs in order to serve."""

    name: str
    ready: bool
    reason: str


class Ready(Body):
    """The server can serve."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"ready": True, "checks": [{"name": "registry", "ready": True, "reason": ""}]}]
        }
    )

    ready: Literal[True] = True
    checks: list[CheckView]


class Draining(Body):
    """The server finishes what it has, takes nothing new, and ends."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"draining": True}]})

    draining: Literal[True] = True


class ConfigurationView(Body):
    """The effective configuration, secrets hidden."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"settings": {"listen": ["127.0.0.1:50051"], "registry": {"url": "**********"}}}]
        }
    )

    settings: dict[str, JsonValue]
