"""The audit log, for whoever may read it."""

from __future__ import annotations

from dataclasses import replace

from recollect_server.application.directory import Directory
from recollect_server.application.tenants import no_tenant
from recollect_server.domain.audit import OPERATOR, TENANT_CREATED, AuditEntry


class AuditLog:
    """Who did what, when, from where: the newest first.

    Args:
        directory: Leads to the registry, which holds it.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    async def page(self, *, tenant: str | None, before: int, limit: int) -> list[AuditEntry]:
        """At most `limit` entries with a number below `before` (0: no bound), of one tenant or of all (None).

        A tenant that was deleted has entries still.

        Raises:
            RegistryUnavailableError: The registry cannot be reached.
        """
        return await self._directory.registry.audit_log(tenant=tenant, before=before, limit=limit)

    async def page_of_tenant(self, tenant: str, *, before: int, limit: int) -> list[AuditEntry]:
        """The same for a tenant that exists, as it may see it: of operators no more than that it was one.

        What is older than the tenant is not its own: there was another one of its name.

        Raises:
            TenantNotFoundError: There is no such tenant.
            RegistryUnavailableError: The registry cannot be reached.
        """
        found = await self._directory.registry.tenant(tenant)
        if found is None:
            raise no_tenant(tenant)
        own: list[AuditEntry] = []
        for entry in await self.page(tenant=tenant, before=before, limit=limit):
            if entry.audit.at_ms >= found.created_at_ms:
                own.append(_for_tenant(entry))
            if entry.audit.action == TENANT_CREATED:
                break  # the times of what stands before it may be the same, or of a clock that is ahead
        return own


def _for_tenant(entry: AuditEntry) -> AuditEntry:
    if not entry.audit.actor.startswith(OPERATOR):
        return entry
    return replace(entry, audit=replace(entry.audit, actor=OPERATOR, source=""))
