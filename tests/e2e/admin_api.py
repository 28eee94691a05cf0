"""The admin API of a server as its operator uses it, and what it tells about a tenant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import cast
from urllib.parse import urlencode

from google.protobuf.message import Message

from tests.e2e.shell import Json
from tests.installation import Installation

AWAY = "REGISTRY_UNAVAILABLE"
WEIGHT = 7
"""What a tenant is given by a change of its quotas."""


class Admin(Installation):
    """One server with its operator, and with one connection for the calls of all tenants."""

    def change(self, method: str, path: str, body: object = None) -> Json | None:
        """What a change was answered with; None if it was refused because the registry is away."""
        answer = self.admin(method, f"/api/v1{path}", body)
        if answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
            assert answer.json()["reason"] == AWAY, answer.text
            assert int(answer.headers["Retry-After"]) >= 1
            return None
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        found: Json = answer.json() if answer.content else {}
        return found

    def reason(self, method: str, request: Message, token: str) -> str:
        """What becomes of one call of the wire: "OK", or the reason that the server gives."""
        answer = self.rpc(method, request, token=token)
        if answer.code != "OK":
            assert answer.detail.reason, f"{method}: {answer}"
            assert (answer.code == "UNAVAILABLE") == (answer.detail.reason == AWAY), f"{method}: {answer}"
        return answer.detail.reason or answer.code

    def items(self, path: str) -> list[dict[str, object]]:
        """All of a list."""
        found: list[dict[str, object]] = []
        token = ""
        while True:
            query: dict[str, str | int] = {"page_size": 1000, "page_token": token}
            answer = self.admin("GET", f"/api/v1{path}?{urlencode(query)}").raise_for_status().json()
            found += answer["items"]
            token = answer["next_page_token"]
            if not token:
                return found

    def not_ready_because(self) -> str:
        """What /readyz says; "" if the server is ready."""
        answer = self.http.get("/readyz")
        if answer.is_success:
            return ""
        assert answer.status_code == HTTPStatus.SERVICE_UNAVAILABLE
        return str(answer.json()["detail"])


def told_by(actions: Sequence[str]) -> Json:
    """The state that a tenant must be in after these actions."""
    if "tenant.create" not in actions or "tenant.delete" in actions:
        return {"exists": False}
    counted = Counter(actions)
    return {
        "exists": True,
        "weight": WEIGHT if counted["tenant.set-quotas"] else 1,
        "keys": ["revoked" if counted["key.revoke"] else "valid"] * counted["key.issue"],
        "namespaces": ["kept"] * (counted["namespace.create"] - counted["namespace.delete"]),
    }


def found_by(admin: Admin, tenants: Iterable[str]) -> dict[str, Json]:
    """The states that tenants are in, as one server tells them."""
    quotas = {str(each["name"]): cast("Json", each["quotas"]) for each in admin.items("/tenants")}
    found: dict[str, Json] = {}
    for tenant in tenants:
        found[tenant] = {"exists": tenant in quotas}
        if tenant in quotas:
            path = f"/tenants/{tenant}"
            found[tenant]["weight"] = quotas[tenant]["weight"]
            found[tenant]["keys"] = [key["state"] for key in admin.items(f"{path}/keys")]
            found[tenant]["namespaces"] = [each["name"] for each in admin.items(f"{path}/namespaces")]
    return found
