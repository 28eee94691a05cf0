"""Tenants and their quotas."""

from __future__ import annotations

from fastapi import Response

from recollect_server.admin.access import OPERATOR, TENANT_ADMIN
from recollect_server.admin.route import router
from recollect_server.admin.routes.parts import By, Pages, Revision, Services, TenantName, etag
from recollect_server.admin.schemas import ChangeTenant, CreateTenant, QuotasBody, TenantPage, TenantView

routes = router("tenants")
TENANTS = "/api/v1/tenants"
TENANT = f"{TENANTS}/{{tenant}}"


@routes.get(TENANTS, dependencies=[OPERATOR], operation_id="listTenants")
async def list_tenants(services: Services, pages: Pages) -> TenantPage:
    """Lists the tenants by name."""
    found = await services.tenants.list(after=pages.after("tenants"), limit=pages.size + 1)
    page = found[: pages.size]
    last = page[-1].name if len(found) > pages.size else ""
    return TenantPage(
        items=[TenantView.of(tenant) for tenant in page], next_page_token=pages.next_token("tenants", last)
    )


@routes.post(TENANTS, dependencies=[OPERATOR], operation_id="createTenant", status_code=201)
async def create_tenant(body: CreateTenant, services: Services, by: By, response: Response) -> TenantView:
    """Makes a tenant; it has no key yet."""
    tenant = await services.tenants.create(body.name, quotas=body.quotas.to_quotas(), origin=by)
    response.headers["ETag"] = etag(tenant.revision)
    response.headers["Location"] = f"{TENANTS}/{tenant.name}"
    return TenantView.of(tenant)


@routes.get(TENANT, dependencies=[TENANT_ADMIN], operation_id="getTenant")
async def get_tenant(tenant: TenantName, services: Services, response: Response) -> TenantView:
    """Describes a tenant."""
    found = await services.tenants.get(tenant)
    response.headers["ETag"] = etag(found.revision)
    return TenantView.of(found)


@routes.patch(TENANT, dependencies=[OPERATOR], operation_id="changeTenant")
async def change_tenant(
    tenant: TenantName,
    body: ChangeTenant,
    *,
    services: Services,
    revision: Revision,
    by: By,
    response: Response,
) -> TenantView:
    """Disables a tenant, or enables it again. A disabled one's keys are refused, and what it stored stays."""
    changed = await services.tenants.set_disabled(tenant, body.disabled, revision=revision, origin=by)
    response.headers["ETag"] = etag(changed.revision)
    return TenantView.of(changed)


@routes.delete(
    TENANT, dependencies=[OPERATOR], operation_id="deleteTenant", status_code=204, response_class=Response
)
async def delete_tenant(tenant: TenantName, services: Services, by: By) -> None:
    """Deletes a tenant with its keys, its namespaces and all that they hold."""
    await services.tenants.delete(tenant, origin=by)


@routes.get(f"{TENANT}/quotas", dependencies=[TENANT_ADMIN], operation_id="getQuotas")
async def get_quotas(tenant: TenantName, services: Services, response: Response) -> QuotasBody:
    """What a tenant may use."""
    found = await services.tenants.get(tenant)
    response.headers["ETag"] = etag(found.revision)
    return QuotasBody.of(found.quotas)


@routes.put(f"{TENANT}/quotas", dependencies=[OPERATOR], operation_id="setQuotas")
async def set_quotas(
    tenant: TenantName,
    body: QuotasBody,
    *,
    services: Services,
    revision: Revision,
    by: By,
    response: Response,
) -> QuotasBody:
    """Replaces a tenant's quotas; those that are not named become the defaults."""
    quotas = body.to_quotas()
    changed = await services.tenants.set_quotas(tenant, quotas, revision=revision, origin=by)
    response.headers["ETag"] = etag(changed.revision)
    return QuotasBody.of(changed.quotas)
