"""Keys through the admin API."""

from __future__ import annotations

import pytest

from tests.contract.admin.conftest import Api

KEYS = "/api/v1/tenants/acme/keys"
OPERATOR_KEYS = "/api/v1/operator-keys"


async def works(api: Api, token: str, path: str = "/api/v1/tenants/acme") -> bool:
    """Whether the API takes a token."""
    return (await api.http.get(path, headers={"Authorization": f"Bearer {token}"})).status_code != 401


@pytest.mark.parametrize("holder", ["operator", "admin"])
async def test_a_key_from_its_issue_to_its_end(api: Api, holder: str) -> None:
    """A tenant's key cannot be made, used or revoked by those who may."""
    body = {"scopes": ["read", "admin"], "label": "für Ünal", "lifetime_s": 60}
    made = await api.call("POST", KEYS, body, holder=holder)
    assert made.status_code == 201
    key, token = made.json()["key"], made.json()["token"]
    assert (key["label"], key["scopes"], key["state"]) == ("für Ünal", ["admin", "read"], "valid")
    assert key["expires_at_ms"] == key["created_at_ms"] + 60_000
    assert await works(api, token)
    for _ in range(2):  # once more does nothing
        assert (await api.call("DELETE", f"{KEYS}/{key['key_id']}", holder=holder)).status_code == 204
    assert not await works(api, token)
    listed = (await api.call("GET", KEYS, holder=holder)).json()["items"]
    assert [each["state"] for each in listed if each["key_id"] == key["key_id"]] == ["revoked"]


async def test_a_secret_is_shown_once(api: Api) -> None:
    """A secret, or what stands for it in the registry, leaves by a list or the audit log."""
    issued = (await api.call("POST", KEYS, {"scopes": ["read"], "label": "x"})).json()
    secret = issued["token"].split("_")[2]
    for path in (KEYS, OPERATOR_KEYS, "/api/v1/audit", "/api/v1/tenants/acme/audit"):
        text = (await api.call("GET", path)).text
        assert secret not in text
        assert "digest" not in text


async def test_rotation_overlaps(api: Api) -> None:
    """Whoever rotates a key has an outage, or an old key that works for ever."""
    old = (await api.call("POST", KEYS, {"scopes": ["read", "admin"], "label": "a"})).json()
    path = f"{KEYS}/{old['key']['key_id']}:rotate"
    new = (await api.call("POST", path, {"overlap_s": 600})).json()
    assert (new["key"]["scopes"], new["key"]["label"]) == (["admin", "read"], "a")
    assert await works(api, old["token"])
    assert await works(api, new["token"])
    listed = {each["key_id"]: each for each in (await api.call("GET", KEYS)).json()["items"]}
    assert listed[old["key"]["key_id"]]["expires_at_ms"] is not None
    assert listed[new["key"]["key_id"]]["expires_at_ms"] is None
    newest = await api.call(
        "POST", path.replace(old["key"]["key_id"], new["key"]["key_id"]), {"overlap_s": 0}
    )
    assert not await works(api, new["token"])
    assert await works(api, newest.json()["token"])
    refused = await api.call("POST", f"{KEYS}/{new['key']['key_id']}:rotate")
    assert refused.json()["reason"] == "KEY_NOT_FOUND"


async def test_operators_keys_stand_apart(api: Api) -> None:
    """A tenant's route reaches an operator's key, or another tenant's."""
    operator = (await api.call("POST", OPERATOR_KEYS, {"label": "night shift"})).json()
    assert operator["key"]["tenant"] is None
    assert await works(api, operator["token"], OPERATOR_KEYS)
    other = (await api.call("POST", "/api/v1/tenants/umbrella/keys", {"scopes": ["read"]})).json()
    for key_id in (operator["key"]["key_id"], other["key"]["key_id"], "0" * 16, "no-key"):
        for method, path in (("DELETE", f"{KEYS}/{key_id}"), ("POST", f"{KEYS}/{key_id}:rotate")):
            refused = await api.call(method, path, holder="admin")
            assert (refused.status_code, refused.json()["detail"]) == (404, f"there is no key {key_id!r}")
    assert (await api.call("DELETE", f"{OPERATOR_KEYS}/{operator['key']['key_id']}")).status_code == 204
    assert not await works(api, operator["token"], OPERATOR_KEYS)


@pytest.mark.parametrize(
    ("body", "status", "argument"),
    [
        ({"scopes": []}, 422, "scopes"),
        ({"scopes": ["root"]}, 422, "scopes.0"),
        ({"scopes": ["read"], "lifetime_s": 0}, 422, "lifetime_s"),
        ({"scopes": ["read"], "lifetime_s": 1.5}, 422, "lifetime_s"),
        ({"scopes": ["read"], "label": "\x1b[2J"}, 400, "label"),
        ({"scopes": ["read"], "label": "x" * 201}, 422, "label"),
        ({"scopes": ["read"], "tenant": "umbrella"}, 422, "tenant"),
        ({}, 422, "scopes"),
        ([], 422, "body"),
    ],
)
async def test_what_no_key_can_be(api: Api, body: object, status: int, argument: str) -> None:
    """A key that nobody meant is made, or the refusal does not name what is wrong."""
    refused = await api.call("POST", KEYS, body)
    assert (refused.status_code, refused.json()["argument"]) == (status, argument)


async def test_keys_of_a_tenant_that_is_not_there(api: Api) -> None:
    """A key is made for nobody, or a list of nothing is taken for a tenant without keys."""
    for method, body in (("GET", None), ("POST", {"scopes": ["read"]})):
        refused = await api.call(method, "/api/v1/tenants/nobody/keys", body)
        assert (refused.status_code, refused.json()["reason"]) == (404, "TENANT_NOT_FOUND")


async def test_a_page_token_belongs_to_its_reader_and_list(api: Api) -> None:
    """A cursor of one tenant, or of another list, means something to another."""
    for _ in range(2):
        await api.call("POST", KEYS, {"scopes": ["read"]}, holder="admin")
    token = (await api.call("GET", f"{KEYS}?page_size=1", holder="admin")).json()["next_page_token"]
    assert token
    assert (await api.call("GET", f"{KEYS}?page_token={token}", holder="admin")).status_code == 200
    for path, holder in (
        (KEYS, "operator"),
        ("/api/v1/tenants/umbrella/keys", "umbrella"),
        ("/api/v1/tenants/acme/namespaces", "admin"),
        ("/api/v1/tenants/acme/audit", "admin"),
    ):
        refused = await api.call("GET", f"{path}?page_token={token}", holder=holder)
        assert (refused.status_code, refused.json()["argument"]) == (400, "page_token")
        assert refused.json()["reason"] == "INVALID_ARGUMENT"
