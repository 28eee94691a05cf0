"""What the admin API takes and gives: tenants and keys. Times are Unix time in ms; durations are in s."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from recollect_server.application.keys import LABEL_LENGTH_MAX, LIFETIME_S_MAX, OVERLAP_S_MAX
from recollect_server.domain.credentials import Key
from recollect_server.domain.identity import Scope
from recollect_server.domain.tenants import QUOTA_MAX, Quotas, Tenant

TENANT_EXAMPLE = "acme"
KEY_ID_EXAMPLE = "0123456789abcdef"
TIME_EXAMPLE = 1_764_000_000_000

Positive = Annotated[int, Field(ge=1, le=QUOTA_MAX)]
Label = Annotated[
    str, Field(max_length=LABEL_LENGTH_MAX, description="for people; printable characters only")
]
Lifetime = Annotated[
    int | None, Field(ge=1, le=LIFETIME_S_MAX, description="after which the key is refused; null: never")
]
TENANT_NAME_PATTERN = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"


class Body(BaseModel):
    """A JSON object: nothing that is not named here, and nothing converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


# ---- tenants ----

_QUOTAS_EXAMPLE: JsonDict = {**dataclasses.asdict(Quotas()), "weight": 2}
_TENANT_EXAMPLE: JsonDict = {
    "name": TENANT_EXAMPLE,
    "created_at_ms": TIME_EXAMPLE,
    "disabled": False,
    "revision": 3,
    "quotas": _QUOTAS_EXAMPLE,
}


class QuotasBody(Body):
    """Bounds of one tenant on one server; namespaces are counted over all servers."""

    model_config = ConfigDict(json_schema_extra={"examples": [_QUOTAS_EXAMPLE]})

    bytes_max: Positive = Field(
        default=Quotas().bytes_max,
        description="allocated for keys, values and indexes, and 4 KiB for each bank",
    )
    entries_max: Positive = Quotas().entries_max
    namespaces_max: Positive = Quotas().namespaces_max
    streams_max: Positive = Field(default=Quotas().streams_max, description="in all namespaces together")
    calls_per_second: Positive = Field(
        default=Quotas().calls_per_second,
        description="sustained; a burst of one second's worth is let through",
    )
    changes_per_minute: Positive = Field(
        default=Quotas().changes_per_minute,
        description="namespaces and keys made, and evictions here, by the tenant's own keys; a minute's "
        "worth may come at once",
    )
    calls_in_flight_max: Positive = Quotas().calls_in_flight_max
    bytes_in_flight_max: Positive = Quotas().bytes_in_flight_max
    calls_queued_max: Positive = Field(
        default=Quotas().calls_queued_max, description="calls that wait for the device"
    )
    weight: Positive = Field(
        default=Quotas().weight, description="share of the device while others want it too"
    )

    def to_quotas(self) -> Quotas:
        """As the domain has them."""
        return Quotas(**{name: getattr(self, name) for name in Quotas.__slots__})

    @classmethod
    def of(cls, quotas: Quotas) -> Self:
        """For the wire."""
        return cls(**dataclasses.asdict(quotas))


class CreateTenant(Body):
    """A tenant to be made. Quotas that are not named are the defaults."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"name": TENANT_EXAMPLE, "quotas": {"weight": 2}}]}
    )

    name: str = Field(pattern=TENANT_NAME_PATTERN, description="a DNS label; unique, and for ever")
    quotas: QuotasBody = Field(default_factory=QuotasBody)


class ChangeTenant(Body):
    """What is to change."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"disabled": True}]})

    disabled: bool = Field(description="true: its keys are refused, and what it stored stays")


class TenantView(Body):
    """A tenant."""

    model_config = ConfigDict(json_schema_extra={"examples": [_TENANT_EXAMPLE]})

    name: str
    created_at_ms: int
    disabled: bool
    revision: int = Field(description="counts the changes; the ETag of the tenant")
    quotas: QuotasBody

    @classmethod
    def of(cls, tenant: Tenant) -> Self:
        """For the wire."""
        return cls(
            name=tenant.name,
            created_at_ms=tenant.created_at_ms,
            disabled=tenant.disabled,
            revision=tenant.revision,
            quotas=QuotasBody.of(tenant.quotas),
        )


class TenantPage(Body):
    """Some tenants, by name."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [_TENANT_EXAMPLE], "next_page_token": ""}]}
    )

    items: list[TenantView]
    next_page_token: str = Field(description='for the next page; "" at the end')


# ---- keys ----

KeyState = Literal["valid", "expired", "revoked"]
_KEY_EXAMPLE: JsonDict = {
    "key_id": KEY_ID_EXAMPLE,
    "tenant": TENANT_EXAMPLE,
    "scopes": ["read", "write"],
    "label": "training cluster",
    "state": "valid",
    "created_at_ms": TIME_EXAMPLE,
    "expires_at_ms": None,
    "revoked_at_ms": None,
    "last_used_at_ms": TIME_EXAMPLE + 60_000,
}


class IssueKey(Body):
    """A tenant's key to be made."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"scopes": ["read", "write"], "label": "training cluster", "lifetime_s": 31_536_000}]
        }
    )

    # A scope comes as text, which strict models take for enums from JSON text only.
    scopes: list[Annotated[Scope, Field(strict=False)]] = Field(
        min_length=1, max_length=len(Scope), description="what the key allows; none includes another"
    )
    label: Label = ""
    lifetime_s: Lifetime = None


class IssueOperatorKey(Body):
    """An operator's key to be made; it allows everything but reading memories."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"label": "night shift"}]})

    label: Label = ""
    lifetime_s: Lifetime = None


class RotateKey(Body):
    """How a key is to be replaced."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"overlap_s": 3600}]})

    overlap_s: int = Field(default=3600, ge=0, le=OVERLAP_S_MAX, description="how long the old key goes on")


class KeyView(Body):
    """What is kept of a key."""

    model_config = ConfigDict(json_schema_extra={"examples": [_KEY_EXAMPLE]})

    key_id: str
    tenant: str | None = Field(description="null: an operator's")
    scopes: list[Annotated[Scope, Field(strict=False)]]
    label: str
    state: KeyState
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None
    last_used_at_ms: int | None = Field(description="some seconds exact; null: never")

    @classmethod
    def of(cls, key: Key, *, now_ms: int) -> Self:
        """For the wire, without the digest."""
        state: KeyState = "valid" if key.is_valid(now_ms) else "expired"
        return cls(
            key_id=key.key_id,
            tenant=key.tenant,
            scopes=sorted(key.scopes),
            label=key.label,
            state=state if key.revoked_at_ms is None else "revoked",
            created_at_ms=key.created_at_ms,
            expires_at_ms=key.expires_at_ms,
            revoked_at_ms=key.revoked_at_ms,
            last_used_at_ms=key.last_used_at_ms,
        )


class KeyPage(Body):
    """Some keys, by id; also expired and revoked ones."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [_KEY_EXAMPLE], "next_page_token": ""}]}
    )

    items: list[KeyView]
    next_page_token: str = Field(description='for the next page; "" at the end')


class IssuedKeyView(Body):
    """A new key."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"key": _KEY_EXAMPLE, "token": f"rk_{KEY_ID_EXAMPLE}_{'0123456789abcdef' * 4}"}]
        }
    )

    key: KeyView
    token: str = Field(description="what its holder is to show; told this once", repr=False)
