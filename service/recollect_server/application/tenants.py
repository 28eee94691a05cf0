"""Tenants: made, looked at, changed and deleted by whoever runs the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from recollect_server.application.directory import Directory
from recollect_server.domain.audit import TENANT_CREATED, Audit, Origin
from recollect_server.domain.errors import RevisionConflictError, TenantExistsError, TenantNotFoundError
from recollect_server.domain.ports import Clock
from recollect_server.domain.registry import Creation
from recollect_server.domain.tenants import Quotas, Tenant, validate_tenant_name

ATTEMPTS = 8
"""Of a change that names no revision, while others change the same tenant."""


def no_tenant(name: str) -> TenantNotFoundError:
    """What is answered for a tenant that does not exist, and, word for word, for another's."""
    return TenantNotFoundError(f"there is no tenant {name!r}", argument="tenant")


class Tenants:
    """What an operator can do with tenants. Who may is the transport's to check.

    Every method raises `RegistryUnavailableError` while the registry cannot be reached. A change is seen by
    this server when its method returns, and by the others a moment later.

    Args:
        directory: The registry, and what this server remembers of it.
        clock: Seconds since the epoch.
    """

    def __init__(self, directory: Directory, *, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock

    async def create(self, name: str, *, quotas: Quotas, origin: Origin) -> Tenant:
        """Makes a tenant; it has no key yet.

        Raises:
            InvalidArgumentError: The name or a quota is wrong.
            TenantExistsError: There is one of this name.
        """
        validate_tenant_name(name)
        quotas.validate()
        tenant = Tenant(name, created_at_ms=self._now_ms(), quotas=quotas)
        audit = self._audit(origin, TENANT_CREATED, name, details=_difference(Quotas(), quotas))
        if await self._directory.registry.create_tenant(tenant, audit=audit) is Creation.EXISTS:
            raise TenantExistsError(f"there is a tenant {name!r} already", argument="name")
        await self._directory.refresh()
        return tenant

    async def get(self, name: str) -> Tenant:
        """A tenant as it is now.

        Raises:
            TenantNotFoundError: There is none of this name.
        """
        tenant = await self._directory.registry.tenant(name)
        if tenant is None:
            raise no_tenant(name)
        return tenant

    async def list(self, *, after: str, limit: int) -> list[Tenant]:
        """At most `limit` tenants by name, those behind `after`."""
        return await self._directory.registry.tenants(after=after, limit=limit)

    async def set_quotas(
        self, name: str, quotas: Quotas, *, revision: int | None = None, origin: Origin
    ) -> Tenant:
        """Replaces the quotas.

        Args:
            name: Of the tenant.
            quotas: All of them.
            revision: The one that the tenant must have, so that nobody's change is overwritten; None: any.
            origin: Who asks.

        Raises:
            InvalidArgumentError: A quota is wrong.
            TenantNotFoundError: There is no such tenant.
            RevisionConflictError: It has another revision.
        """
        quotas.validate()
        return await self._change(
            name,
            lambda tenant: replace(tenant, quotas=quotas),
            action="tenant.set-quotas",
            revision=revision,
            origin=origin,
        )

    async def set_disabled(
        self, name: str, disabled: bool, *, revision: int | None = None, origin: Origin
    ) -> Tenant:
        """Disables a tenant, so that its keys are refused and what it stored stays, or enables it again.

        Raises:
            TenantNotFoundError: There is no such tenant.
            RevisionConflictError: It has another revision than `revision`.
        """
        return await self._change(
            name,
            lambda tenant: replace(tenant, disabled=disabled),
            action="tenant.disable" if disabled else "tenant.enable",
            revision=revision,
            origin=origin,
        )

    async def delete(self, name: str, *, origin: Origin) -> None:
        """Deletes a tenant with its keys and namespaces; servers free what it stored.

        Raises:
            TenantNotFoundError: There is no such tenant.
        """
        audit = self._audit(origin, "tenant.delete", name)
        deleted = await self._directory.registry.delete_tenant(name, audit=audit)
        await self._directory.refresh()
        if not deleted:
            raise no_tenant(name)

    async def _change(
        self,
        name: str,
        change: Callable[[Tenant], Tenant],
        *,
        action: str,
        revision: int | None,
        origin: Origin,
    ) -> Tenant:
        for _ in range(ATTEMPTS):
            tenant = await self.get(name)
            if revision is not None and tenant.revision != revision:
                raise RevisionConflictError(
                    f"tenant {name!r} has revision {tenant.revision}, not {revision}: read it again",
                    argument="revision",
                )
            changed = change(tenant)
            if changed == tenant:
                return tenant
            changed = replace(changed, revision=tenant.revision + 1)
            audit = self._audit(origin, action, name, details=_difference(tenant.quotas, changed.quotas))
            if await self._directory.registry.replace_tenant(changed, audit=audit):
                await self._directory.refresh()
                return changed
        raise RevisionConflictError(
            f"tenant {name!r} is being changed by others; try again", argument="revision"
        )

    def _audit(self, origin: Origin, action: str, name: str, *, details: str = "") -> Audit:
        return Audit(self._now_ms(), origin.actor, origin.source, action, name, name, details)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _difference(before: Quotas, after: Quotas) -> str:
    changes = (
        f"{name} {getattr(before, name)} -> {getattr(after, name)}"
        for name in Quotas.__slots__
        if getattr(before, name) != getattr(after, name)
    )
    return "; ".join(changes)
