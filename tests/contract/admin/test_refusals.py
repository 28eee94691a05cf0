"""What is refused, in which order, and how."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest

from tests.contract.admin.conftest import Api

HUGE = b"{" * 70_000
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": 7}', HUGE], ids=len)
@pytest.mark.parametrize(
    ("holder", "status"), [("", 401), ("unknown", 401), ("metrics", 401), ("reader", 403), ("admin", 403)]
)
async def test_the_credential_is_checked_before_the_body(
    api: Api, holder: str, status: int, content: bytes
) -> None:
    """Whoever may not call has a body read and judged, or learns from the judgement."""
    refused = await api.call("POST", "/api/v1/tenants", holder=holder, content=content, headers=JSON)
    assert refused.status_code == status
    assert api.world.telemetry.calls[-1].request_bytes == 0


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Basic eDp5", "rk_0_0", "Bearer rk_x_y", "Bearer " + "x" * 5000, "Bearer \xe4"],
)
async def test_every_bad_credential_gets_one_answer(api: Api, authorization: str) -> None:
    """An attacker learns from the answer what is wrong with a credential."""
    expected = await api.call("GET", "/api/v1/tenants", holder="unknown")
    headers = {b"Authorization": authorization.encode("latin-1")}
    got = await api.http.get("/api/v1/tenants", headers=headers)
    assert (got.status_code, got.text) == (401, expected.text)
    assert got.headers["www-authenticate"] == "Bearer"


async def test_two_credentials_are_none(api: Api) -> None:
    """A proxy and the server take different ones of two credentials."""
    value = api.world.headers("operator")["Authorization"]
    headers = [("Authorization", value), ("Authorization", value)]
    assert (await api.http.get("/api/v1/tenants", headers=headers)).status_code == 401


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_is_bounded(api: Api, declared: bool) -> None:
    """A caller with a valid key fills the memory with one body."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(70):
            yield b" " * 1000

    content = HUGE if declared else chunks()
    headers = {**api.world.headers("operator"), **JSON}
    with contextlib.suppress(httpx.TransportError):  # the server hangs up on who goes on sending
        refused = await api.http.post("/api/v1/tenants", content=content, headers=headers)
        assert (refused.status_code, refused.json()["reason"]) == (413, "BODY_TOO_LARGE")
    assert api.world.telemetry.calls[-1].reason == "BODY_TOO_LARGE"
    assert (await api.call("GET", "/api/v1/tenants")).status_code == 200


@pytest.mark.parametrize(
    ("content", "argument"),
    [
        (b"{", "body"),
        (b"\xff", ""),
        (b"[" * 30_000, ""),
        (b'{"name": "x", "name2": NaN}', "name2"),
        (b'{"name": "\\ud800"}', "name"),
        (b"", "body"),
    ],
    ids=repr,
)
async def test_a_body_that_is_none(api: Api, content: bytes, argument: str) -> None:
    """A malformed body is an internal error."""
    refused = await api.call("POST", "/api/v1/tenants", content=content, headers=JSON)
    assert refused.status_code in (400, 422)
    if argument:
        assert refused.json()["argument"] == argument


async def test_a_refusal_does_not_repeat_what_was_sent(api: Api) -> None:
    """A secret that was sent to the wrong place comes back, and lands in somebody's log."""
    body = {"name": "x", "password": "hunter2", "quotas": {"weight": "hunter2"}}
    refused = await api.call("POST", "/api/v1/tenants", body)
    assert "hunter2" not in refused.text
    assert {fault["argument"] for fault in refused.json()["errors"]} == {"quotas.weight", "password"}


async def test_what_is_not_there(api: Api) -> None:
    """The router answers in words of its own."""
    assert (await api.call("GET", "/api/v1/nothing")).json()["reason"] == "NO_SUCH_ROUTE"
    assert (await api.call("GET", "/api/v1/tenants/")).status_code == 404
    other = await api.call("DELETE", "/api/v1/tenants")
    assert (other.status_code, other.headers["allow"]) == (405, "GET, POST")
    assert (await api.call("GET", "/docs")).status_code == 404
    options = await api.call("OPTIONS", "/api/v1/tenants/acme")
    assert options.headers["allow"] == "DELETE, GET, PATCH"


@pytest.mark.parametrize(
    "query", ["page_size=0", "page_size=1001", "page_size=x", "page_token=x", "page_token=%00"]
)
async def test_a_page_that_is_none(api: Api, query: str) -> None:
    """A list takes any page that somebody makes up."""
    assert (await api.call("GET", f"/api/v1/tenants?{query}")).status_code in (400, 422)


async def test_the_registry_may_be_away(api: Api) -> None:
    """A registry that cannot be reached is an internal error, or a change that is lost."""
    await api.world.directory.registry.close()
    for method, body in (("GET", None), ("POST", {"name": "x"})):
        refused = await api.call(method, "/api/v1/tenants", body)
        assert (refused.status_code, refused.json()["reason"]) == (503, "REGISTRY_UNAVAILABLE")
        assert refused.headers["retry-after"] == "1"
    await api.world.directory.registry.open()
