"""The audit log: who did what, when, from where. Entries are only ever appended."""

from __future__ import annotations

from dataclasses import dataclass

from recollect_server.domain.identity import Operator, Principal

OPERATOR, TENANT = "operator", "tenant"
"""How the names of actors begin."""

TENANT_CREATED = "tenant.create"
"""The action with which the log of a tenant begins."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks for a change, and from where.

    Attributes:
        actor: As in `Audit`.
        source: As in `Audit`.
    """

    actor: str
    source: str

    @property
    def is_tenant(self) -> bool:
        """Whether it is a tenant's own key that asks, and no operator."""
        return self.actor.startswith(f"{TENANT}:")


SERVER = Origin(actor="server", source="")


def origin_of(principal: Principal, source: str) -> Origin:
    """The origin of what a principal does.

    Args:
        principal: Who.
        source: Its address.
    """
    if isinstance(principal, Operator):
        return Origin(f"{OPERATOR}:{principal.key_id}", source)
    return Origin(f"{TENANT}:{principal.tenant}:{principal.key_id}", source)


@dataclass(frozen=True, slots=True)
class Audit:
    """One administrative change, written in the same transaction as the change itself.

    Attributes:
        at_ms: Unix time.
        actor: "operator:<key id>", "tenant:<tenant>:<key id>", or "server" for what it does by itself.
        source: Address that the call came from, or "".
        action: "tenant.create", "key.revoke", "namespace.delete", ...
        tenant: Whom it concerns, or "".
        target: What was changed: a tenant's name, a key id, a namespace's name.
        details: In words, without secrets; "" if the action says all.
    """

    at_ms: int
    actor: str
    source: str
    action: str
    tenant: str
    target: str
    details: str = ""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An audit as it stands in the log.

    Attributes:
        number: Ascends, without end; the place in the log.
        audit: What happened.
    """

    number: int
    audit: Audit
