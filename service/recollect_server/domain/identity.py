"""Who is calling. Made from a credential by an `Authenticator`, never from a message."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Scope(enum.StrEnum):
    """What a key lets its holder do. None includes another."""

    READ = "read"
    """Search, attend, and look at namespaces."""
    WRITE = "write"
    """Add and evict; make and delete namespaces."""
    ADMIN = "admin"
    """Manage the tenant's own keys and namespaces through the admin API."""


ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller of a tenant.

    Attributes:
        tenant: Whose namespaces the call may see. Every look-up of a namespace goes through it.
        key_id: Of the key that was shown; "" where none was needed.
        scopes: What the key allows.
    """

    tenant: str
    key_id: str = ""
    scopes: frozenset[Scope] = ALL_SCOPES


@dataclass(frozen=True, slots=True)
class Operator:
    """Whoever runs the server. Belongs to no tenant, and reads no memory.

    Attributes:
        key_id: Of the operator key that was shown.
    """

    key_id: str


Principal = Caller | Operator
