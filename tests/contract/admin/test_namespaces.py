"""Namespaces through the admin API."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from recollect_server.domain.eviction import BeforeSequence, Everything, OlderThan, Oldest, Selector
from tests.contract.admin.conftest import Api

NAMESPACES = "/api/v1/tenants/acme/namespaces"
NAMES = ("run-7", "team/run-7", "a:b@c+d", "a/stats", "a:evict", "a//b", "a/..", "a/./b")


@pytest.mark.parametrize("holder", ["operator", "admin"])
@pytest.mark.parametrize("name", NAMES)
async def test_any_name_is_one_segment_of_the_path(api: Api, name: str, holder: str) -> None:
    """A namespace with a slash or colon in its name cannot be managed, or another one is meant."""
    await api.world.add_namespace("acme", name)
    path = f"{NAMESPACES}/{quote(name, safe='')}"
    found = await api.call("GET", path, holder=holder)
    assert found.json()["name"] == name
    assert found.json()["spec"]["dtype"] == "float16"
    assert (found.json()["spec"]["index"], found.json()["spec"]["recall"]) == ("auto", 0.95)
    assert (await api.call("GET", f"{path}/stats", holder=holder)).json()["entries"] == 3
    evicted = await api.call("POST", f"{path}:evict", {"selector": {"kind": "all"}}, holder=holder)
    assert evicted.json() == {"evicted": 5}
    assert api.world.namespaces.evictions[-1][1] == name
    assert (await api.call("DELETE", path, holder=holder)).status_code == 204
    missing = await api.call("GET", path, holder=holder)
    assert (missing.status_code, missing.json()["reason"]) == (404, "NAMESPACE_NOT_FOUND")


@pytest.mark.parametrize("name", ["%00", "%2F", "%25", "%FF", "..", "a%20b", "x" * 200])
async def test_what_no_namespace_can_be_called(api: Api, name: str) -> None:
    """A name that cannot be is an internal error, or reaches what it should not."""
    missing = await api.call("GET", f"{NAMESPACES}/{name}/stats")
    assert missing.status_code == 404


@pytest.mark.parametrize(
    ("body", "selector"),
    [
        ({"kind": "oldest", "entries": 3}, Oldest(3)),
        ({"kind": "before_sequence", "sequence": 9}, BeforeSequence(9)),
        ({"kind": "older_than", "age_s": 1.5}, OlderThan(1.5)),
        ({"kind": "older_than", "age_s": 1}, OlderThan(1.0)),
        ({"kind": "all"}, Everything()),
    ],
)
async def test_every_selector_arrives(api: Api, body: object, selector: Selector) -> None:
    """An eviction removes other entries than those that were named."""
    await api.world.add_namespace("acme", "run-7")
    wanted = {"selector": body, "streams": ["doc-1"], "layers": [8]}
    assert (await api.call("POST", f"{NAMESPACES}/run-7:evict", wanted)).status_code == 200
    assert api.world.namespaces.evictions == [("acme", "run-7", ("doc-1",), (8,), selector)]


async def test_a_tenants_evictions_are_counted_as_changes(api: Api) -> None:
    """A tenant's key that evicts in a loop fills the audit log, which all share and which is for ever."""
    await api.world.add_namespace("acme", "run-7")
    await api.call("PUT", "/api/v1/tenants/acme/quotas", {"changes_per_minute": 2})
    evict = ("POST", f"{NAMESPACES}/run-7:evict", {"selector": {"kind": "all"}})
    answers = [await api.call(*evict, holder="admin") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert answers[-1].json()["reason"] == "QUOTA_CHANGES_PER_MINUTE"
    assert "retry-after" in answers[-1].headers
    assert len(api.world.namespaces.evictions) == 2
    assert (await api.call(*evict, holder="operator")).status_code == 200
    assert (await api.call("DELETE", f"{NAMESPACES}/run-7", holder="admin")).status_code == 204


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"selector": {}},
        {"selector": {"kind": "all", "entries": 1}},
        {"selector": {"kind": "oldest", "entries": -1}},
        {"selector": {"kind": "oldest", "entries": True}},
        {"selector": {"kind": "all"}, "streams": []},
        {"selector": {"kind": "all"}, "layers": [-1]},
    ],
)
async def test_a_vague_eviction_removes_nothing(api: Api, body: object) -> None:
    """An eviction that says nothing definite removes something."""
    await api.world.add_namespace("acme", "run-7")
    assert (await api.call("POST", f"{NAMESPACES}/run-7:evict", body)).status_code == 422
    assert api.world.namespaces.evictions == []


async def test_anothers_namespace_is_one_that_does_not_exist(api: Api) -> None:
    """A tenant can tell from an answer that another's namespace, or another tenant, exists."""
    await api.world.add_namespace("umbrella", "secret")
    for path in ("", "/secret", "/secret/stats"):
        there = await api.call("GET", f"/api/v1/tenants/umbrella/namespaces{path}", holder="admin")
        gone = await api.call("GET", f"/api/v1/tenants/umbrellb/namespaces{path}", holder="admin")
        assert there.status_code == gone.status_code == 404
        assert there.text.replace("umbrella", "umbrellb") == gone.text
    assert (await api.call("GET", f"{NAMESPACES}/secret", holder="admin")).status_code == 404


async def test_namespaces_come_in_pages(api: Api) -> None:
    """A namespace is missing in the list."""
    for index in range(3):
        await api.world.add_namespace("acme", f"n/{index}")
    first = (await api.call("GET", f"{NAMESPACES}?page_size=2", holder="admin")).json()
    token = first["next_page_token"]
    second = (await api.call("GET", f"{NAMESPACES}?page_size=2&page_token={token}", holder="admin")).json()
    assert [item["name"] for item in first["items"] + second["items"]] == ["n/0", "n/1", "n/2"]
    assert not second["next_page_token"]
