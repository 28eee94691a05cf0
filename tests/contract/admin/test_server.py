"""Health, metrics, drain, configuration, and what is told about calls."""

from __future__ import annotations

import logging

import pytest

from recollect_server.admin.services import Check
from tests.admin_world import in_process
from tests.contract.admin.conftest import Api


async def test_probes_need_no_key(api: Api) -> None:
    """An orchestrator kills a healthy server, or sends work to one that cannot serve."""
    assert (await api.call("GET", "/livez", holder="")).json() == {"alive": True}
    assert (await api.call("GET", "/readyz", holder="")).json()["ready"]
    api.world.checks.append(Check("draining", ready=False, reason="the server is shutting down"))
    waiting = await api.call("GET", "/readyz", holder="")
    assert (waiting.status_code, waiting.json()["reason"]) == (503, "NOT_READY")
    assert waiting.json()["detail"] == "draining: the server is shutting down"
    assert "retry-after" in waiting.headers
    assert (await api.call("GET", "/livez", holder="")).status_code == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_probes_may_ask_without_the_body(api: Api, path: str) -> None:
    """`wget --spider` takes a healthy server for a dead one, or the connection breaks behind the answer."""
    for _ in range(2):
        asked = await api.call("HEAD", path, holder="")
        assert (asked.status_code, asked.content) == (200, b"")
        assert (
            asked.headers["content-length"]
            == (await api.call("GET", path, holder="")).headers["content-length"]
        )
    other = await api.http.request("POST", path)
    assert (other.status_code, other.headers["allow"]) == (405, "GET, HEAD")
    api.world.checks.append(Check("draining", ready=False, reason="the server is shutting down"))
    assert (await api.http.head(path)).status_code == (200 if path == "/livez" else 503)


async def test_nothing_but_probes_is_asked_without_the_body(api: Api) -> None:
    """A route is called by a method that its access rule was not written for."""
    for path in ("/api/v1/tenants", "/metrics", "/openapi.json"):
        assert (await api.http.head(path, headers=api.world.headers("operator"))).status_code == 405


@pytest.mark.parametrize(
    ("address", "holder", "forwarded", "status"),
    [
        ("127.0.0.1", "", False, 200),
        ("::1", "", False, 200),
        ("127.0.0.1", "", True, 401),
        ("10.0.0.9", "", False, 401),
        ("10.0.0.9", "unknown", False, 401),
        ("127.0.0.1", "unknown", False, 401),
        ("10.0.0.9", "admin", False, 403),
        ("10.0.0.9", "operator", False, 200),
        ("10.0.0.9", "metrics", False, 200),
        ("10.0.0.9", "metrics", True, 200),
    ],
)
async def test_metrics_are_for_this_machine_and_who_has_a_key(
    api: Api, address: str, holder: str, forwarded: bool, status: int
) -> None:
    """Names of customers are to be read by whoever reaches the port."""
    headers = {**api.world.headers(holder), **({"X-Forwarded-For": "127.0.0.1"} if forwarded else {})}
    async with in_process(api.world.app, address=address) as http:
        assert (await http.get("/metrics", headers=headers)).status_code == status


async def test_metrics_say_what_they_are(api: Api) -> None:
    """Prometheus does not understand what it scrapes."""
    scraped = await api.call("GET", "/metrics", holder="")
    assert scraped.text == "up 1\n"
    assert scraped.headers["content-type"] == "text/plain; version=1.0.0; charset=utf-8"


async def test_the_metrics_key_opens_nothing_else(api: Api) -> None:
    """Whoever scrapes can administer."""
    assert (await api.call("GET", "/api/v1/tenants", holder="metrics")).status_code == 401


async def test_an_operator_drains(api: Api) -> None:
    """A server cannot be drained, or by somebody who may not."""
    assert (await api.call("POST", "/api/v1/server:drain", holder="admin")).status_code == 403
    assert (await api.call("POST", "/api/v1/server:drain")).status_code == 202
    (origin,) = api.world.drained
    assert origin.actor.startswith("operator:")


async def test_operators_see_the_configuration(api: Api) -> None:
    """Nobody can find out what a server was started with, or everybody can."""
    path = "/api/v1/server/configuration"
    assert (await api.call("GET", path)).json() == {"settings": {"listen": ["127.0.0.1:50051"]}}
    assert (await api.call("GET", path, holder="admin")).status_code == 403


async def test_a_tenant_reads_its_own_audit_log(api: Api) -> None:
    """A tenant reads what concerns another, or not what concerns itself."""
    await api.call("POST", "/api/v1/tenants/umbrella/keys", {"scopes": ["read"]})
    own = (await api.call("GET", "/api/v1/tenants/acme/audit", holder="admin")).json()["items"]
    assert {entry["tenant"] for entry in own} == {"acme"}
    everything = (await api.call("GET", "/api/v1/audit?tenant=acme")).json()["items"]
    assert [entry["number"] for entry in own] == [entry["number"] for entry in everything]
    assert {(entry["actor"], entry["source"]) for entry in own} <= {("operator", ""), ("server", "")}
    assert (await api.call("GET", "/api/v1/tenants/umbrella/audit", holder="admin")).status_code == 404
    assert (await api.call("GET", "/api/v1/audit", holder="admin")).status_code == 403


async def test_a_tenant_does_not_read_what_another_of_its_name_did(api: Api) -> None:
    """Who gets a name that was used before reads the keys, addresses and namespaces of who had it."""
    await api.call(
        "POST", "/api/v1/tenants/acme/keys", {"scopes": ["read"], "label": "theirs"}, holder="admin"
    )
    pages = "/api/v1/tenants/acme/audit?page_size=1"
    token = (await api.call("GET", pages, holder="admin")).json()["next_page_token"]
    await api.call("DELETE", "/api/v1/tenants/acme")
    await api.call("POST", "/api/v1/tenants", {"name": "acme"})
    issued = await api.call("POST", "/api/v1/tenants/acme/keys", {"scopes": ["admin"]})
    api.world.tokens["heir"] = issued.json()["token"]
    own = (await api.call("GET", "/api/v1/tenants/acme/audit", holder="heir")).json()
    assert [entry["action"] for entry in own["items"]] == ["key.issue", "tenant.create"]
    assert not own["next_page_token"]
    kept = await api.call("GET", f"{pages}&page_token={token}", holder="heir")
    assert kept.json()["items"] == []
    everything = (await api.call("GET", "/api/v1/audit?tenant=acme")).json()["items"]
    assert "tenant.delete" in {entry["action"] for entry in everything}


async def test_the_audit_log_comes_in_pages(api: Api) -> None:
    """A part of the audit log cannot be read."""
    numbers: list[int] = []
    token = ""
    while True:
        page = (await api.call("GET", f"/api/v1/audit?page_size=2&page_token={token}")).json()
        numbers += [entry["number"] for entry in page["items"]]
        token = page["next_page_token"]
        if not token:
            break
    assert numbers == list(range(6, 0, -1))


async def test_telemetry_is_told_of_every_call(api: Api) -> None:
    """A call is missing in metrics and logs, or a caller makes up a label."""
    api.world.telemetry.calls.clear()
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    await api.call("GET", "/api/v1/tenants/acme", holder="admin", headers={"traceparent": traceparent})
    await api.call("GET", "/made/up", holder="")
    headers = {"x-request-id": "my-7", "traceparent": "junk"}
    response = await api.call("BREW", "/api/v1/tenants/umbrella", holder="admin", headers=headers)
    assert response.headers["x-request-id"] == "my-7"
    await api.call("GET", "/api/v1/tenants/umbrella", holder="admin")
    first, second, third, fourth = api.world.telemetry.calls
    assert (first.method, first.status) == ("GET /api/v1/tenants/{tenant}", "200")
    assert (first.transport, first.tenant, first.traceparent) == ("http", "acme", traceparent)
    assert first.key_id
    assert (second.method, second.status, second.reason) == ("GET (no route)", "404", "NO_SUCH_ROUTE")
    assert (third.method, third.status) == ("(other) /api/v1/tenants/{tenant}", "405")
    assert (third.request_id, third.traceparent) == ("my-7", "")
    assert (fourth.status, fourth.reason, fourth.tenant) == ("404", "TENANT_NOT_FOUND", "acme")


async def test_a_defect_tells_nothing_but_its_id(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """A defect shows a caller the inside of the server, or leaves no trace in the log."""
    await api.world.add_namespace("acme", "run-7")
    api.world.namespaces.breaks = True
    with caplog.at_level(logging.ERROR):
        broken = await api.call("GET", "/api/v1/tenants/acme/namespaces/run-7/stats")
    problem = broken.json()
    assert (broken.status_code, problem["reason"]) == (500, "INTERNAL")
    assert "secret detail" not in broken.text
    logged = [record for record in caplog.records if problem["error_id"] in record.getMessage()]
    assert len(logged) == len(caplog.records) == 1
    assert api.world.telemetry.calls[-1].error_id == problem["error_id"]
