"""Namespaces as records: made, found, listed and deleted, each for its own tenant alone."""

from __future__ import annotations

import uuid

from recollect_server.application.changes import Changes
from recollect_server.application.commands import Namespace
from recollect_server.application.directory import Directory
from recollect_server.domain.audit import Audit, Origin
from recollect_server.domain.errors import (
    InvalidArgumentError,
    NamespaceExistsError,
    NamespaceNotFoundError,
    QuotaExceededError,
    TooManyNamespacesError,
    UnauthenticatedError,
)
from recollect_server.domain.identity import Caller
from recollect_server.domain.limits import Limits
from recollect_server.domain.ports import Clock
from recollect_server.domain.registry import Creation, NamespaceRecord
from recollect_server.domain.spec import NamespaceSpec, is_name, validate_name
from recollect_server.domain.tenants import Quotas


class Catalog:
    """The namespaces of all tenants, as the registry knows them.

    Every method raises `RegistryUnavailableError` where the registry is away and what it needs is not
    remembered.

    Args:
        directory: Cached reads of the registry, and the registry itself for changes.
        changes: Bounds how often a tenant makes namespaces.
        limits: The server's bounds.
        clock: Seconds since the epoch.
    """

    def __init__(self, directory: Directory, *, changes: Changes, limits: Limits, clock: Clock) -> None:
        self._directory = directory
        self._changes = changes
        self._limits = limits
        self._clock = clock

    async def quotas(self, caller: Caller) -> Quotas:
        """What the caller's tenant may use.

        Raises:
            UnauthenticatedError: The tenant has just been deleted.
        """
        tenant = await self._directory.tenant(caller.tenant)
        if tenant is None:
            raise UnauthenticatedError
        return tenant.quotas

    async def create(
        self, caller: Caller, name: str, *, spec: NamespaceSpec, exist_ok: bool = False, origin: Origin
    ) -> NamespaceRecord:
        """Makes a namespace, or returns the one there is with `exist_ok`.

        Raises:
            InvalidArgumentError: The name or the spec is wrong.
            NamespaceExistsError: It exists, with another spec or without `exist_ok`.
            QuotaExceededError: The tenant has as many as it may, or makes them too often.
        """
        validate_name("name", name, self._limits)
        spec.validate(self._limits)
        existing = await self._directory.namespace(caller.tenant, name)
        if existing is not None:
            return _same(existing, spec, exist_ok=exist_ok)
        quotas = await self.quotas(caller)
        self._changes.count(caller.tenant, quotas, origin=origin)
        at_most = min(quotas.namespaces_max, self._limits.namespaces_max)
        now_ms = int(self._clock() * 1000)
        record = NamespaceRecord(caller.tenant, name, spec, created_at_ms=now_ms, uid=uuid.uuid4().hex)
        audit = Audit(now_ms, origin.actor, origin.source, "namespace.create", caller.tenant, name)
        made = await self._directory.registry.create_namespace(record, at_most=at_most, audit=audit)
        if made is Creation.FULL:
            message = f"there are {at_most} namespaces, which is the most; delete one"
            if at_most == self._limits.namespaces_max:
                raise TooManyNamespacesError(message, argument="name")
            raise QuotaExceededError("namespaces", message)
        if made is Creation.NO_TENANT:
            raise UnauthenticatedError
        await self._directory.refresh()
        if made is Creation.EXISTS:  # another call made it in between
            found = await self._directory.namespace(caller.tenant, name)
            return _same(found or record, spec, exist_ok=exist_ok)
        return record

    async def get(self, caller: Caller, name: str) -> Namespace:
        """The caller's namespace of this name.

        Raises:
            NamespaceNotFoundError: There is none, or it is another tenant's: the answer is the same.
        """
        # The one line that keeps tenants apart: every look-up passes here, by the caller's tenant.
        record = await self._directory.namespace(caller.tenant, name) if self._may_exist(name) else None
        if record is None:
            shown = name[: self._limits.name_length_max]  # a status must fit the headers of an answer
            raise NamespaceNotFoundError(
                f"there is no namespace {shown!r}; create it first", argument="namespace"
            )
        return Namespace(record, await self.quotas(caller))

    def _may_exist(self, name: str) -> bool:
        """False for what is not looked for: a name of megabytes would be remembered as absent."""
        return is_name(name, self._limits)

    async def list(self, caller: Caller, *, page_size: int, after: str) -> tuple[list[NamespaceRecord], str]:
        """A page of the caller's namespaces by name, and the name to go on after ("" at the end).

        Raises:
            InvalidArgumentError: page_size is negative or too large.
        """
        if not 0 <= page_size <= self._limits.page_size_max:
            raise InvalidArgumentError(
                "page_size", f"is {page_size}; it must be from 0 (default) to {self._limits.page_size_max}"
            )
        size = page_size or self._limits.page_size_default
        records = await self._directory.registry.namespaces(caller.tenant, after=after, limit=size + 1)
        page = records[:size]
        return page, page[-1].name if len(records) > size else ""

    async def delete(self, caller: Caller, name: str, *, missing_ok: bool = False, origin: Origin) -> bool:
        """Removes a namespace's record; whoever holds its memory frees it then.

        Returns:
            Whether there was one.

        Raises:
            NamespaceNotFoundError: There is none, and `missing_ok` is false.
        """
        deleted = False
        if self._may_exist(name):
            now_ms = int(self._clock() * 1000)
            audit = Audit(now_ms, origin.actor, origin.source, "namespace.delete", caller.tenant, name)
            deleted = await self._directory.registry.delete_namespace(caller.tenant, name, audit=audit)
            await self._directory.refresh()
        if not deleted and not missing_ok:
            await self.get(caller, name)
        return deleted


def _same(existing: NamespaceRecord, spec: NamespaceSpec, *, exist_ok: bool) -> NamespaceRecord:
    difference = existing.spec.difference(spec)
    if difference:
        raise NamespaceExistsError(
            f"namespace {existing.name!r} exists with another spec: {difference}. A spec cannot change: use "
            "another name, or delete it first",
            argument="spec",
        )
    if not exist_ok:
        raise NamespaceExistsError(
            f"namespace {existing.name!r} exists already; pass exist_ok to use it", argument="name"
        )
    return existing
