"""docs/security.md against the code: who may call what."""

from __future__ import annotations

from fastapi.routing import APIRoute

from recollect_server.admin.app import ROUTERS
from recollect_server.admin.route import access_of
from recollect_server.rpc.access import ACCESS
from tests.docs.pages import code, page, rows

SECURITY = page("docs/security.md")


def test_every_call_is_there_with_its_scope() -> None:
    """The page promises less, or more, than the server keeps."""
    said = {code(call)[0]: scope for call, scope in rows(SECURITY, ["call", "scope"])}
    assert said == {
        path.rpartition("/")[2]: scope.value if scope else "any" for path, scope in ACCESS.items()
    }


def test_every_route_is_there_with_its_rule() -> None:
    """The page promises less, or more, than the admin API keeps."""
    listed = rows(SECURITY, ["route", "who"])
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    expected = {
        f"{method} {route.path_format}": access_of(route).name
        for route in routes
        for method in route.methods or ()
    }
    assert {code(route)[0]: who for route, who in listed} == expected
