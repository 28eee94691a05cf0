"""Tenants and keys on a real server, made as an operator makes them: through the admin API."""

from __future__ import annotations

from collections.abc import Sequence

import grpc
import httpx
from google.protobuf.message import Message

from tests.clients import Answer, raw_grpc
from tests.closing import Closing
from tests.server_process import OPERATOR_TOKEN, ServerProcess

ALL_SCOPES = ("read", "write", "admin")


class Installation(Closing):
    """A server with an operator.

    Args:
        server: Started with keys.
        operator_token: Of its operator.
    """

    def __init__(self, server: ServerProcess, *, operator_token: str = OPERATOR_TOKEN) -> None:
        self.server = server
        self.http = httpx.Client(base_url=server.admin_url, timeout=60)
        self._operator = operator_token
        self._channel = grpc.insecure_channel(
            server.tcp_url.removeprefix("grpc://"),
            options=[("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)],
        )

    def admin(
        self, method: str, path: str, body: object = None, *, token: str | None = None
    ) -> httpx.Response:
        """One request to the admin API, the operator's if no token is given."""
        headers = {"authorization": f"Bearer {token or self._operator}"}
        return self.http.request(method, path, json=body, headers=headers)

    def done(self, method: str, path: str, body: object = None) -> dict[str, object]:
        """The same, which has to succeed."""
        response = self.admin(method, path, body)
        assert response.is_success, response.text
        found: dict[str, object] = response.json() if response.content else {}
        return found

    def tenant(self, name: str, **quotas: int) -> str:
        """Makes a tenant; returns the token of a key with all scopes."""
        self.done("POST", "/api/v1/tenants", {"name": name, "quotas": quotas})
        return self.token(name)

    def token(self, tenant: str, scopes: Sequence[str] = ALL_SCOPES, *, lifetime_s: int | None = None) -> str:
        """Issues a key; returns its token."""
        body = {"scopes": list(scopes), "lifetime_s": lifetime_s}
        issued = self.done("POST", f"/api/v1/tenants/{tenant}/keys", body)
        return str(issued["token"])

    def revoke(self, tenant: str, token: str) -> None:
        """Has a token refused from now on."""
        self.done("DELETE", f"/api/v1/tenants/{tenant}/keys/{token.split('_')[1]}")

    def rpc(self, method: str, request: Message | bytes, *, token: str | None) -> Answer[Message]:
        """One call of the wire, past the client."""
        return raw_grpc(self._channel, token=token)(method, request)

    def close(self) -> None:
        """Closes connections; the server goes on."""
        self.http.close()
        self._channel.close()
