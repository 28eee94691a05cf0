"""Tenants and quotas through the admin API."""

from __future__ import annotations

from tests.contract.admin.conftest import Api

TENANTS = "/api/v1/tenants"


async def test_a_tenant_from_its_making_to_its_end(api: Api) -> None:
    """An operator cannot make, look at or delete a tenant."""
    made = await api.call("POST", TENANTS, {"name": "initech", "quotas": {"weight": 3}})
    assert made.status_code == 201
    assert made.headers["location"] == f"{TENANTS}/initech"
    assert made.json()["quotas"]["weight"] == 3
    found = await api.call("GET", f"{TENANTS}/initech")
    assert found.json() == made.json()
    assert found.headers["etag"] == made.headers["etag"] == '"1"'
    assert (await api.call("DELETE", f"{TENANTS}/initech")).status_code == 204
    for method in ("GET", "DELETE"):
        assert (await api.call(method, f"{TENANTS}/initech")).json()["reason"] == "TENANT_NOT_FOUND"


async def test_a_tenant_is_made_once(api: Api) -> None:
    """A second tenant of the name takes the place of the first."""
    again = await api.call("POST", TENANTS, {"name": "acme"})
    assert (again.status_code, again.json()["reason"]) == (409, "TENANT_EXISTS")


async def test_lists_come_in_pages(api: Api) -> None:
    """A page is lost or comes twice."""
    for index in range(5):
        await api.call("POST", TENANTS, {"name": f"t{index}"})
    names: list[str] = []
    token = ""
    while True:
        page = (await api.call("GET", f"{TENANTS}?page_size=3&page_token={token}")).json()
        names += [item["name"] for item in page["items"]]
        token = page["next_page_token"]
        if not token:
            break
    assert names == ["acme", "t0", "t1", "t2", "t3", "t4", "umbrella"]


async def test_a_disabled_tenant_is_refused_and_comes_back(api: Api) -> None:
    """A tenant that was disabled goes on, or cannot be enabled again."""
    tenant = f"{TENANTS}/acme"
    assert (await api.call("GET", tenant, holder="admin")).status_code == 200
    assert (await api.call("PATCH", tenant, {"disabled": True})).json()["disabled"]
    assert (await api.call("GET", tenant, holder="admin")).status_code == 401
    await api.call("PATCH", tenant, {"disabled": False})
    assert (await api.call("GET", tenant, holder="admin")).status_code == 200


async def test_quotas_are_replaced_as_a_whole(api: Api) -> None:
    """Quotas that an operator set are not those that hold."""
    path = f"{TENANTS}/acme/quotas"
    await api.call("PUT", path, {"weight": 5, "entries_max": 9})
    changed = (await api.call("PUT", path, {"weight": 7})).json()
    assert changed["weight"] == 7
    assert changed["entries_max"] == 16_777_216
    assert (await api.call("GET", path)).json() == changed


async def test_nobody_overwrites_a_change_unseen(api: Api) -> None:
    """Of two operators who change a tenant at once, one loses the change and is not told."""
    path = f"{TENANTS}/acme/quotas"
    seen = (await api.call("GET", path)).headers["etag"]
    first = await api.call("PUT", path, {"weight": 2}, headers={"If-Match": seen})
    assert first.headers["etag"] != seen
    second = await api.call("PUT", path, {"weight": 3}, headers={"If-Match": seen})
    assert (second.status_code, second.json()["reason"]) == (412, "REVISION_CONFLICT")
    for junk in ("W/" + seen, '"1", "2"', "junk"):
        assert (await api.call("PUT", path, {}, headers={"If-Match": junk})).status_code == 412
    assert (await api.call("PUT", path, {"weight": 4}, headers={"If-Match": "*"})).status_code == 200


async def test_a_tenants_administrator_sees_its_own_and_changes_nothing(api: Api) -> None:
    """A tenant raises its own quotas, or cannot see them."""
    assert (await api.call("GET", f"{TENANTS}/acme/quotas", holder="admin")).status_code == 200
    for method, path, body in (
        ("PUT", f"{TENANTS}/acme/quotas", {"weight": 9}),
        ("PATCH", f"{TENANTS}/acme", {"disabled": False}),
        ("DELETE", f"{TENANTS}/acme", None),
        ("GET", TENANTS, None),
    ):
        assert (await api.call(method, path, body, holder="admin")).status_code == 403


async def test_every_change_is_in_the_audit_log(api: Api) -> None:
    """Nobody can find out who changed what."""
    await api.call("POST", TENANTS, {"name": "initech"})
    await api.call("PUT", f"{TENANTS}/initech/quotas", {"weight": 2})
    await api.call("PATCH", f"{TENANTS}/initech", {"disabled": True})
    await api.call("DELETE", f"{TENANTS}/initech")
    log = (await api.call("GET", "/api/v1/audit?tenant=initech")).json()["items"]
    actions = ["tenant.delete", "tenant.disable", "tenant.set-quotas", "tenant.create"]
    assert [entry["action"] for entry in log] == actions
    assert log[2]["details"] == "weight 1 -> 2"
    assert all(entry["source"] == "127.0.0.1" for entry in log)
    assert {entry["actor"].split(":")[0] for entry in log} == {"operator"}
