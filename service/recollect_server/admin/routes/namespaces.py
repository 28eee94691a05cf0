"""Namespaces of a tenant. They are made by clients, over gRPC; memories are never read here."""

from __future__ import annotations

from fastapi import Response

from recollect_server.admin.access import TENANT_ADMIN
from recollect_server.admin.route import router
from recollect_server.admin.routes.parts import By, NamespaceName, Pages, Services, TenantName
from recollect_server.admin.views import EvictedView, EvictEntries, NamespacePage, NamespaceView, StatsView

routes = router("namespaces")
NAMESPACES = "/api/v1/tenants/{tenant}/namespaces"
NAMESPACE = f"{NAMESPACES}/{{namespace}}"


@routes.get(NAMESPACES, dependencies=[TENANT_ADMIN], operation_id="listNamespaces")
async def list_namespaces(tenant: TenantName, services: Services, pages: Pages) -> NamespacePage:
    """Lists a tenant's namespaces by name."""
    what = f"namespaces/{tenant}"
    page, last = await services.namespaces.list(tenant, page_size=pages.size, after=pages.after(what))
    return NamespacePage(
        items=[NamespaceView.of(record) for record in page], next_page_token=pages.next_token(what, last)
    )


@routes.get(NAMESPACE, dependencies=[TENANT_ADMIN], operation_id="getNamespace")
async def get_namespace(tenant: TenantName, namespace: NamespaceName, services: Services) -> NamespaceView:
    """Describes a namespace."""
    return NamespaceView.of(await services.namespaces.get(tenant, namespace))


@routes.get(f"{NAMESPACE}/stats", dependencies=[TENANT_ADMIN], operation_id="getNamespaceStats")
async def get_namespace_stats(tenant: TenantName, namespace: NamespaceName, services: Services) -> StatsView:
    """What a namespace holds on this server."""
    return StatsView.of(await services.namespaces.stats(tenant, namespace))


@routes.post(f"{NAMESPACE}:evict", dependencies=[TENANT_ADMIN], operation_id="evictEntries")
async def evict_entries(
    tenant: TenantName, namespace: NamespaceName, body: EvictEntries, services: Services, by: By
) -> EvictedView:
    """Removes entries. Possible over quota; a tenant's own evictions count in `changes_per_minute`."""
    evicted = await services.namespaces.evict(
        tenant,
        namespace,
        streams=None if body.streams is None else tuple(body.streams),
        layers=tuple(body.layers),
        selector=body.to_selector(),
        origin=by,
    )
    return EvictedView(evicted=evicted)


@routes.delete(
    NAMESPACE,
    dependencies=[TENANT_ADMIN],
    operation_id="deleteNamespace",
    status_code=204,
    response_class=Response,
)
async def delete_namespace(tenant: TenantName, namespace: NamespaceName, services: Services, by: By) -> None:
    """Deletes a namespace and frees its memory. Possible over quota."""
    caller = await services.namespaces.require_tenant(tenant)
    await services.namespaces.delete(caller, namespace, origin=by)
