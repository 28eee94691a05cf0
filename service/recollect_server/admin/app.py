"""The application: routes, rules, errors and the gate, put together."""

from __future__ import annotations

from functools import cache, partial

from fastapi import FastAPI
from fastapi.routing import APIRoute

from recollect_server.admin.gate import Gate
from recollect_server.admin.handlers import add_handlers
from recollect_server.admin.openapi import document
from recollect_server.admin.repeats import Repeats
from recollect_server.admin.route import access_of
from recollect_server.admin.routes import keys, namespaces, server, tenants
from recollect_server.admin.services import AdminServices

ROUTERS = (server.routes, tenants.routes, keys.routes, namespaces.routes, server.audit_routes)

ROUTES = tuple(
    f"{method} {route.path_format}"
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute)
    for method in sorted(route.methods or ())
)
"""Every route as telemetry is told of it, as "GET /api/v1/tenants"."""


def create_app(services: AdminServices) -> FastAPI:
    """The admin API over these services.

    Raises:
        ValueError: A route has no access rule.
    """
    app = FastAPI(
        title="Recollect admin API",
        version=services.version,
        # The document is a route like others, and pages that load scripts from elsewhere are not served.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = services
    app.state.repeats = Repeats(services.registry, clock=services.clock)
    for router in ROUTERS:
        # Not include_router: the routes are to stand in app.routes as they are, so that rules can be checked.
        app.router.routes.extend(router.routes)
    require_rules(app)
    add_handlers(app)
    app.add_middleware(Gate, services=services)
    # Made when it is first asked for.
    app.openapi = cache(partial(document, app))  # type: ignore[method-assign]  # FastAPI's documented way to extend it
    return app


def require_rules(app: FastAPI) -> None:
    """Raises ValueError if a route of the application has no access rule."""
    for route in app.routes:
        if not isinstance(route, APIRoute):
            raise ValueError(f"{route} is not one of the routes that have access rules")
        access_of(route)
