"""The server itself: health, metrics, configuration, drain; and the audit log."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse

from recollect_server.admin.access import METRICS, OPEN, OPERATOR, TENANT_ADMIN
from recollect_server.admin.current import current
from recollect_server.admin.gate import LIVENESS, READINESS, instance_of
from recollect_server.admin.problems import problem
from recollect_server.admin.route import router
from recollect_server.admin.routes.parts import By, Pages, Paging, Services, TenantName
from recollect_server.admin.schemas import TENANT_EXAMPLE, TENANT_NAME_PATTERN
from recollect_server.admin.views import (
    Alive,
    AuditPage,
    AuditView,
    CheckView,
    ConfigurationView,
    Draining,
    Ready,
)
from recollect_server.domain.audit import AuditEntry

routes = router("server")
audit_routes = router("audit")
METRICS_EXAMPLE = "# TYPE recollect_calls_total counter\nrecollect_calls_total 3.0\n"


@routes.get(LIVENESS, dependencies=[OPEN], operation_id="isAlive")
async def is_alive() -> Alive:
    """Whether the process answers at all. For liveness probes, also by HEAD; needs no key."""
    return Alive()


@routes.get(READINESS, dependencies=[OPEN], operation_id="isReady", response_model=Ready)
async def is_ready(services: Services, request: Request) -> Ready | Response:
    """Whether the server can serve, and if not, why. For readiness probes, also by HEAD; needs no key."""
    checks = await services.readiness()
    missing = [check for check in checks if not check.ready]
    if not missing:
        return Ready(checks=[CheckView(name=c.name, ready=True, reason="") for c in checks])
    current(request).reason = "NOT_READY"
    return problem(
        503,
        "NOT_READY",
        "; ".join(f"{check.name}: {check.reason}" for check in missing),
        instance=instance_of(request.scope),
        more={"checks": [{"name": c.name, "ready": c.ready, "reason": c.reason} for c in checks]},
        headers={"Retry-After": "1"},
    )


@routes.get(
    "/metrics",
    dependencies=[METRICS],
    operation_id="getMetrics",
    response_class=Response,
    responses={
        200: {
            "description": "Prometheus exposition",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": METRICS_EXAMPLE}},
        }
    },
)
async def get_metrics(services: Services) -> Response:
    """Metrics for Prometheus. They name tenants: without a key on this machine only, not through a proxy."""
    content, content_type = services.metrics()
    return Response(content, headers={"Content-Type": content_type})


@routes.get("/openapi.json", dependencies=[OPEN], operation_id="getOpenapi", include_in_schema=False)
async def get_openapi(request: Request) -> JSONResponse:
    """This document."""
    return JSONResponse(cast("FastAPI", request.app).openapi())


@routes.post("/api/v1/server:drain", dependencies=[OPERATOR], operation_id="drainServer", status_code=202)
async def drain_server(services: Services, by: By) -> Draining:
    """Has this server finish what it has, take nothing new, and end."""
    await services.drain(by)
    return Draining()


@routes.get("/api/v1/server/configuration", dependencies=[OPERATOR], operation_id="getConfiguration")
async def get_configuration(services: Services) -> ConfigurationView:
    """The effective configuration of this server, secrets hidden."""
    return ConfigurationView.model_validate({"settings": dict(services.settings_view())})


@audit_routes.get("/api/v1/audit", dependencies=[OPERATOR], operation_id="listAudit")
async def list_audit(
    services: Services,
    pages: Pages,
    tenant: Annotated[
        str | None,
        Query(
            pattern=TENANT_NAME_PATTERN,
            examples=[TENANT_EXAMPLE],
            description="whom it concerns, also if it was deleted; none: all",
        ),
    ] = None,
) -> AuditPage:
    """Who did what, when, from where; the newest first."""
    what = f"audit/{tenant or ''}"
    before = pages.before_number(what)
    found = await services.audit.page(tenant=tenant, before=before, limit=pages.size + 1)
    return _audit_page(found, pages, what)


@audit_routes.get(
    "/api/v1/tenants/{tenant}/audit", dependencies=[TENANT_ADMIN], operation_id="listTenantAudit"
)
async def list_tenant_audit(tenant: TenantName, services: Services, pages: Pages) -> AuditPage:
    """What concerns one tenant; the newest first."""
    what = f"tenant-audit/{tenant}"
    before = pages.before_number(what)
    found = await services.audit.page_of_tenant(tenant, before=before, limit=pages.size + 1)
    return _audit_page(found, pages, what)


def _audit_page(found: list[AuditEntry], pages: Paging, what: str) -> AuditPage:
    page = found[: pages.size]
    last = str(page[-1].number) if len(found) > pages.size else ""
    return AuditPage(
        items=[AuditView.of(entry) for entry in page], next_page_token=pages.next_token(what, last)
    )
