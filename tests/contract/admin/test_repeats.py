"""POSTs with an idempotency key."""

from __future__ import annotations

import asyncio

import pytest

from tests.admin_world import in_process
from tests.contract.admin.conftest import Api

TENANTS = "/api/v1/tenants"
KEYS = "/api/v1/tenants/acme/keys"
ONCE = {"Idempotency-Key": "once"}


async def test_a_repeat_gets_the_first_answer(api: Api) -> None:
    """Whoever lost an answer and asks again is told that it failed."""
    first = await api.call("POST", TENANTS, {"name": "x"}, headers=ONCE)
    again = await api.call("POST", TENANTS, {"name": "x"}, headers=ONCE)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    for name in ("etag", "location"):
        assert again.headers[name] == first.headers[name]


async def test_a_key_is_issued_once(api: Api) -> None:
    """A repeat issues a second key, or does not get the token."""
    first = await api.call("POST", KEYS, {"scopes": ["read"]}, headers=ONCE)
    again = await api.call("POST", KEYS, {"scopes": ["read"]}, headers=ONCE)
    assert again.content == first.content
    assert len((await api.call("GET", KEYS)).json()["items"]) == 3


async def test_repeats_at_once_wait_for_the_first(api: Api) -> None:
    """Repeats that come while the first is under way each do it again."""
    calls = (api.call("POST", KEYS, {"scopes": ["read"]}, headers=ONCE) for _ in range(8))
    answers = await asyncio.gather(*calls)
    assert len({answer.content for answer in answers}) == 1
    assert len((await api.call("GET", KEYS)).json()["items"]) == 3


async def test_a_secret_stays_with_the_server_that_made_it(api: Api) -> None:
    """A token is kept where other servers read it, or a repeat elsewhere issues another key."""
    first = (await api.call("POST", KEYS, {"scopes": ["read"]}, headers=ONCE)).json()
    headers = {**api.world.headers("operator"), **ONCE}
    async with in_process(api.world.another_server()) as http:
        lost = await http.post(KEYS, json={"scopes": ["read"]}, headers=headers)
        assert (lost.status_code, lost.json()["reason"]) == (409, "IDEMPOTENT_ANSWER_LOST")
        assert first["key"]["key_id"] in lost.json()["detail"]
        assert first["token"] not in lost.text
        shared = await api.call("POST", TENANTS, {"name": "x"}, headers={"Idempotency-Key": "2"})
        again = await http.post(TENANTS, json={"name": "x"}, headers={**headers, "Idempotency-Key": "2"})
        assert again.content == shared.content


@pytest.mark.parametrize("body", [{"name": "y"}, {"name": "x", "quotas": {"weight": 2}}])
async def test_another_request_needs_another_key(api: Api, body: object) -> None:
    """A request that nobody carried out gets the answer of another one."""
    await api.call("POST", TENANTS, {"name": "x"}, headers=ONCE)
    refused = await api.call("POST", TENANTS, body, headers=ONCE)
    assert (refused.status_code, refused.json()["reason"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    elsewhere = await api.call("POST", KEYS, {"scopes": ["read"]}, headers=ONCE)
    assert elsewhere.json()["reason"] == "IDEMPOTENCY_KEY_REUSED"


async def test_one_callers_keys_mean_nothing_to_another(api: Api) -> None:
    """One tenant gets the answer of another, with its token."""
    own = await api.call("POST", KEYS, {"scopes": ["read"]}, headers=ONCE, holder="admin")
    other = await api.call("POST", KEYS, {"scopes": ["read"]}, headers=ONCE, holder="operator")
    assert own.json()["token"] != other.json()["token"]
    foreign = await api.call("POST", KEYS, {"scopes": ["read"]}, headers=ONCE, holder="umbrella")
    assert foreign.status_code == 404


async def test_a_refused_request_may_come_again(api: Api) -> None:
    """A caller who corrects what stood in the way is refused for ever."""
    assert (await api.call("POST", TENANTS, {"name": "acme"}, headers=ONCE)).status_code == 409
    await api.call("DELETE", f"{TENANTS}/acme")
    assert (await api.call("POST", TENANTS, {"name": "acme"}, headers=ONCE)).status_code == 201


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "\xe4"])
async def test_what_no_idempotency_key_can_be(api: Api, key: str) -> None:
    """A key of any size is stored."""
    token = api.world.tokens["operator"].encode()
    headers = {b"Idempotency-Key": key.encode("latin-1"), b"Authorization": b"Bearer " + token}
    refused = await api.http.post(TENANTS, json={"name": "x"}, headers=headers)
    assert (refused.status_code, refused.json()["argument"]) == (400, "Idempotency-Key")
