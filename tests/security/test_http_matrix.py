"""Every route of the admin API with every kind of credential. The routes come from the OpenAPI document."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
import pytest
from fastapi.routing import APIRoute

from recollect_server.admin.route import access_of
from tests.admin_world import world
from tests.installation import Installation
from tests.security.conftest import NAMESPACE, Tokens
from tests.security.test_rpc_matrix import NOT_VALID, credential

RULES = {
    "isAlive": "open",
    "isReady": "open",
    "getMetrics": "metrics",
    "drainServer": "operator",
    "getConfiguration": "operator",
    "listAudit": "operator",
    "listTenants": "operator",
    "createTenant": "operator",
    "changeTenant": "operator",
    "deleteTenant": "operator",
    "setQuotas": "operator",
    "listOperatorKeys": "operator",
    "issueOperatorKey": "operator",
    "rotateOperatorKey": "operator",
    "revokeOperatorKey": "operator",
    "getTenant": "tenant-admin",
    "getQuotas": "tenant-admin",
    "listKeys": "tenant-admin",
    "issueKey": "tenant-admin",
    "rotateKey": "tenant-admin",
    "revokeKey": "tenant-admin",
    "listNamespaces": "tenant-admin",
    "getNamespace": "tenant-admin",
    "getNamespaceStats": "tenant-admin",
    "evictEntries": "tenant-admin",
    "deleteNamespace": "tenant-admin",
    "listTenantAudit": "tenant-admin",
}
"""Who may call each route, written down a second time: a change of the server's own rule must be meant."""

OPERATORS = sorted(name for name, rule in RULES.items() if rule == "operator")
TENANT_ADMINS = sorted(name for name, rule in RULES.items() if rule == "tenant-admin")
CLOSED = [*OPERATORS, *TENANT_ADMINS]
ABSENT_KEY = "0123456789abcdef"
OPEN = sorted(name for name, rule in RULES.items() if rule == "open")
NOT_IN_THE_DOCUMENT = {("GET", "/openapi.json", "open")}
"""The document itself."""
OF_THE_MOMENT = {"date", "x-request-id"}
"""Headers that are others each time, and of one length."""
VALID = ("right", "read", "write", "admin", "theirs")


@dataclass(frozen=True)
class Route:
    """One operation of the document."""

    method: str
    path: str
    rule: str

    def url(self, tenant: str, *, namespace: str = NAMESPACE, key_id: str = ABSENT_KEY) -> str:
        """Its path for a tenant."""
        return self.path.format(tenant=tenant, namespace=namespace, key_id=key_id)


@pytest.fixture(scope="session")
def routes(installation: Installation) -> dict[str, Route]:
    """The document's operations by operationId."""
    document = installation.http.get("/openapi.json").json()
    return {
        operation["operationId"]: Route(method.upper(), path, operation["x-recollect-access"])
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
        if method in ("get", "put", "post", "delete", "patch")
    }


def send(installation: Installation, route: Route, url: str, token: str | None) -> httpx.Response:
    """A request whose body is junk: whoever may not call is refused before it is read."""
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return installation.http.request(route.method, url, headers=headers, content=b"{not json")


def shape(response: httpx.Response, *, without: str) -> tuple[int, object, object, int]:
    """All of an answer that must not depend on whether something exists; names of one length stand in it."""
    problem = {name: str(value).replace(without, "") for name, value in response.json().items()}
    headers = {name: value for name, value in response.headers.items() if name not in OF_THE_MOMENT}
    size = sum(len(name) + len(value) for name, value in response.headers.raw) + len(response.content)
    return response.status_code, problem, headers, size


def test_every_route_has_a_rule(routes: dict[str, Route]) -> None:
    """A route was added, and nobody decided who may call it."""
    assert {name: route.rule for name, route in routes.items()} == RULES


async def test_no_route_is_hidden(routes: dict[str, Route]) -> None:
    """A route that the document does not name is in nobody's matrix."""
    async with world() as made:
        served = {
            (method, route.path_format, access_of(route).name)
            for route in made.app.routes
            if isinstance(route, APIRoute)
            for method in route.methods or ()
        }
        assert all(isinstance(route, APIRoute) for route in made.app.routes)
    documented = {(route.method, route.path, route.rule) for route in routes.values()}
    assert served == documented | NOT_IN_THE_DOCUMENT


@pytest.mark.parametrize("kind", [kind for kind in NOT_VALID if kind != "operator"])
@pytest.mark.parametrize("name", CLOSED)
def test_a_credential_that_is_not_valid(
    name: str, kind: str, installation: Installation, tokens: Tokens, routes: dict[str, Route]
) -> None:
    """A request is answered without a valid key, or the refusal tells what is wrong with the key."""
    response = send(installation, routes[name], routes[name].url("ours"), credential(kind, tokens))
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.headers["content-type"] == "application/problem+json"
    expected = send(installation, routes[name], routes[name].url("ours"), None).json()
    assert response.json() == expected


@pytest.mark.parametrize("kind", ["right", "read", "write", "admin", "theirs"])
@pytest.mark.parametrize("name", OPERATORS)
def test_a_tenants_key_where_an_operators_is_needed(
    name: str, kind: str, installation: Installation, tokens: Tokens, routes: dict[str, Route]
) -> None:
    """A tenant can do what is an operator's, or learns from the refusal what exists."""
    token: str = getattr(tokens, kind)
    response = send(installation, routes[name], routes[name].url("ours"), token)
    assert response.status_code == 403
    absent = send(installation, routes[name], routes[name].url("sour"), token)
    assert shape(response, without="ours") == shape(absent, without="sour")


@pytest.mark.parametrize("kind", ["read", "write"])
@pytest.mark.parametrize("name", TENANT_ADMINS)
def test_a_key_without_the_scope_admin(
    name: str, kind: str, installation: Installation, tokens: Tokens, routes: dict[str, Route]
) -> None:
    """A key for reading or writing memories manages keys or namespaces."""
    response = send(installation, routes[name], routes[name].url("ours"), getattr(tokens, kind))
    assert response.status_code == 403


@pytest.mark.parametrize("kind", ["right", "read", "write", "admin"])
@pytest.mark.parametrize("name", TENANT_ADMINS)
def test_another_tenant_is_one_that_does_not_exist(
    name: str, kind: str, installation: Installation, tokens: Tokens, routes: dict[str, Route]
) -> None:
    """A tenant can tell that another exists, or reach what is the other's."""
    token: str = getattr(tokens, kind)
    foreign = send(installation, routes[name], routes[name].url("theirs"), token)
    missing = send(installation, routes[name], routes[name].url("nobody"), token)
    assert foreign.status_code == 404
    assert shape(foreign, without="theirs") == shape(missing, without="nobody")


@pytest.mark.parametrize("kind", ["right", "admin", "operator"])
@pytest.mark.parametrize("name", TENANT_ADMINS)
def test_the_right_key_is_let_in(
    name: str, kind: str, installation: Installation, tokens: Tokens, routes: dict[str, Route]
) -> None:
    """A tenant's administrator, or an operator, is refused; or junk is taken for a request."""
    url = routes[name].url("ours", namespace="absent")
    response = send(installation, routes[name], url, getattr(tokens, kind))
    assert response.status_code in (200, 400, 404, 422)


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "drainServer"])
def test_an_operator_is_let_in(
    name: str, installation: Installation, tokens: Tokens, routes: dict[str, Route]
) -> None:
    """An operator is refused."""
    response = send(installation, routes[name], routes[name].url("nobody"), tokens.operator)
    assert response.status_code in (200, 400, 404, 422)


@pytest.mark.parametrize("kind", [*NOT_VALID, *VALID])
@pytest.mark.parametrize("name", OPEN)
def test_open_routes_tell_nothing_of_tenants(
    name: str, kind: str, installation: Installation, tokens: Tokens, routes: dict[str, Route]
) -> None:
    """Whoever reaches the port learns the names of customers, or a probe is refused for its key."""
    token = credential(kind, tokens) if kind in NOT_VALID else getattr(tokens, kind)
    response = send(installation, routes[name], routes[name].path, token)
    plain = send(installation, routes[name], routes[name].path, None)
    assert response.status_code == 200
    assert shape(response, without="") == shape(plain, without="")
    assert "ours" not in response.text


@pytest.mark.parametrize("header", ["forwarded", "x-forwarded-for", "x-real-ip", "via"])
def test_metrics_are_not_for_whoever_is_behind_a_proxy(
    header: str, installation: Installation, routes: dict[str, Route]
) -> None:
    """A proxy on this machine makes everybody who reaches it one of this machine."""
    answer = installation.http.get(routes["getMetrics"].path, headers={header: "10.0.0.1"})
    assert answer.status_code == 401


METRICS = {
    **dict.fromkeys(NOT_VALID, 401),
    "none": 200,  # from this machine
    **dict.fromkeys(VALID, 403),
    "operator": 200,
}


@pytest.mark.parametrize("kind", METRICS)
def test_metrics(kind: str, installation: Installation, tokens: Tokens, routes: dict[str, Route]) -> None:
    """Metrics, which name all tenants, are shown to one of them, or to somebody with a key of no use."""
    token = credential(kind, tokens) if kind in NOT_VALID else getattr(tokens, kind)
    url = routes["getMetrics"].path
    assert send(installation, routes["getMetrics"], url, token).status_code == METRICS[kind]


def test_a_namespace_of_another_tenant_is_not_reached_through_the_own(
    installation: Installation, tokens: Tokens, routes: dict[str, Route]
) -> None:
    """The tenant of the path and that of the namespace need not be the same."""
    for name in ("getNamespace", "getNamespaceStats", "deleteNamespace"):
        foreign = send(installation, routes[name], routes[name].url("theirs"), tokens.theirs)
        absent = "n" * len(NAMESPACE)
        missing = send(
            installation, routes[name], routes[name].url("theirs", namespace=absent), tokens.theirs
        )
        assert foreign.status_code == 404
        assert shape(foreign, without=NAMESPACE) == shape(missing, without=absent)
