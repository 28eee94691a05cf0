"""The registry port: what servers share. Tenants, keys, namespaces, the audit log, answers to repeats."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from recollect_server.domain.audit import Audit, AuditEntry
from recollect_server.domain.credentials import Key
from recollect_server.domain.spec import NamespaceSpec
from recollect_server.domain.tenants import Tenant

ANSWERS_MAX = 1000
"""Answers to repeats that are kept for each tenant, and for the operators together; the oldest go."""


@dataclass(frozen=True, slots=True)
class NamespaceRecord:
    """A namespace as the registry knows it.

    Attributes:
        tenant: Whose it is.
        name: Unique within the tenant.
        spec: What it is.
        created_at_ms: Unix time.
        uid: Tells it from every other namespace there ever was, also of the same name.
    """

    tenant: str
    name: str
    spec: NamespaceSpec
    created_at_ms: int
    uid: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a POST with an idempotency key was answered with.

    Attributes:
        fingerprint: Of the request, so that a key used for another one is noticed.
        status: HTTP status.
        body: Of the response, without secrets.
        headers: Of the response, those that a repeat is to get too.
    """

    fingerprint: str
    status: int
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Creation(enum.Enum):
    """What became of an attempt to create."""

    CREATED = "created"
    EXISTS = "exists"
    FULL = "full"
    NO_TENANT = "no tenant"


class Registry(Protocol):
    """What all servers of an installation agree on.

    Every change is durable when the call returns, is written together with its `audit` or not at all, and
    changes `version`. Lists are ordered by name, id or number; `after` is the last one of the page before
    ("" or 0 for the first page).

    Every method raises `RegistryUnavailableError` if the registry cannot be reached; a change may then have
    happened or not. A registry that is full raises it for what takes room, and then nothing happened; but
    `replace_tenant`, `delete_tenant` and `replace_key` go on where it can be had so: who fills it must not
    keep others from stopping him.
    """

    async def open(self) -> None:
        """Connects, and makes what a new registry needs. Raises ValueError if it is not usable at all."""
        ...

    async def close(self) -> None:
        """Ends what `open` began."""
        ...

    async def version(self) -> str:
        """Changes with every change of a tenant, key or namespace. Cheap: servers poll it."""
        ...

    # ---- tenants ----

    async def create_tenant(self, tenant: Tenant, *, audit: Audit) -> Creation:
        """CREATED or EXISTS."""
        ...

    async def tenant(self, name: str) -> Tenant | None:
        """The tenant, or None."""
        ...

    async def tenants(self, *, after: str, limit: int) -> list[Tenant]:
        """A page, by name."""
        ...

    async def replace_tenant(self, tenant: Tenant, *, audit: Audit) -> bool:
        """Stores the tenant if what is stored has the revision before its own; False, unchanged, if not."""
        ...

    async def delete_tenant(self, name: str, *, audit: Audit) -> bool:
        """Removes the tenant with its keys and namespaces; False if there is none."""
        ...

    # ---- keys ----

    async def create_key(self, key: Key, *, audit: Audit) -> Creation:
        """CREATED, EXISTS, or NO_TENANT."""
        ...

    async def key(self, key_id: str) -> Key | None:
        """The key, or None."""
        ...

    async def keys(self, tenant: str | None, *, after: str, limit: int) -> list[Key]:
        """A page of a tenant's keys (None: of the operators'), by key id."""
        ...

    async def replace_key(self, key: Key, *, audit: Audit) -> bool:
        """Stores a changed key. Its last use is kept.

        False if there is none of its id, or if the change would make it last longer than it is to by now: it
        may have been revoked since it was read.
        """
        ...

    async def rotate_key(self, old: Key, new: Key, *, audit: Audit) -> bool:
        """Stores the changed old key and the new one, both or neither; False as `replace_key` of the old."""
        ...

    async def touch_keys(self, last_used_at_ms: Mapping[str, int]) -> None:
        """Notes the last use of keys by id; ids that are gone are passed over. Leaves `version` alone."""
        ...

    # ---- namespaces ----

    async def create_namespace(self, record: NamespaceRecord, *, at_most: int, audit: Audit) -> Creation:
        """CREATED; EXISTS; FULL if the tenant has `at_most` already; NO_TENANT."""
        ...

    async def namespace(self, tenant: str, name: str) -> NamespaceRecord | None:
        """The tenant's namespace of this name, or None. There is no look-up across tenants."""
        ...

    async def namespaces(self, tenant: str, *, after: str, limit: int) -> list[NamespaceRecord]:
        """A page of the tenant's namespaces, by name."""
        ...

    async def delete_namespace(self, tenant: str, name: str, *, audit: Audit) -> bool:
        """Removes the record; False if there is none."""
        ...

    # ---- the audit log ----

    async def append_audit(self, audit: Audit) -> None:
        """Appends what changed nothing in the registry, as a drain or an eviction."""
        ...

    async def audit_log(self, *, tenant: str | None, before: int, limit: int) -> list[AuditEntry]:
        """The newest entries numbered below `before` (0: no bound), newest first; of one tenant or all."""
        ...

    # ---- repeats ----

    async def answer(self, idempotency_key: str) -> Answer | None:
        """What the key was answered with before, if that is remembered still."""
        ...

    async def remember(self, idempotency_key: str, answer: Answer, *, tenant: str | None, for_s: int) -> None:
        """Keeps an answer to a tenant (None: an operator) for so long, or until `ANSWERS_MAX` newer ones."""
        ...
