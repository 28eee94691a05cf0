"""Around every request: its id, its size, what is told about it, and what nobody expected."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from urllib.parse import unquote_to_bytes

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recollect_server.admin import current
from recollect_server.admin.current import CurrentCall
from recollect_server.admin.problems import problem
from recollect_server.admin.refusals import RefusedError
from recollect_server.admin.services import AdminServices
from recollect_server.domain.errors import InternalError
from recollect_server.domain.identity import Caller
from recollect_server.domain.telemetry import CallRecord

log = logging.getLogger(__name__)

REQUEST_ID_PATTERN = re.compile(r"[A-Za-z0-9._:-]{1,64}")
TRACEPARENT_PATTERN = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
GONE = "499"
"""Of a call whose caller did not wait for the answer."""
INSTANCE_LENGTH_MAX = 1024
LIVENESS, READINESS = "/livez", "/readyz"
PROBES = frozenset({LIVENESS, READINESS})
"""Paths that take HEAD too, as some probes ask: answered as GET, and whoever writes to the socket leaves the
body out."""


class Gate:
    """An ASGI middleware.

    Args:
        app: What it stands before.
        services: For the bounds, and to tell of each call.
    """

    def __init__(self, app: ASGIApp, services: AdminServices) -> None:
        self._app = app
        self._services = services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD" and scope["path"] in PROBES:
            scope = {**scope, "method": "GET"}  # a copy: the socket's side has to know what was asked for
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        call = CurrentCall(asked if REQUEST_ID_PATTERN.fullmatch(asked) else secrets.token_hex(16))
        current.begin(scope, call)
        if raw_path := scope.get("raw_path"):
            scope["path"] = one_segment_each(raw_path)
        exchange = _Exchange(receive, send, headers, call.request_id, self._services.body_bytes_max)
        started_ns, started_s = time.time_ns(), time.perf_counter()
        try:
            await self._answer(scope, exchange, call)
        finally:
            total_s = time.perf_counter() - started_s
            record = _record(scope, exchange, call, started_ns=started_ns, total_s=total_s)
            self._services.telemetry.call_ended(record)

    async def _answer(self, scope: Scope, exchange: _Exchange, call: CurrentCall) -> None:
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except (ClientDisconnect, asyncio.CancelledError):
            # Cancelled is what outlasts the grace of a server that stops; its connection is closed by then.
            return
        except Exception:
            call.error_id = secrets.token_hex(8)
            call.reason = InternalError.reason
            log.exception("internal error %s", call.error_id, extra={"request_id": call.request_id})
            if exchange.status:
                raise  # half an answer is out: only the connection can be closed
            message = InternalError(call.error_id).message
            response = problem(500, call.reason, message, instance=instance_of(scope), error_id=call.error_id)
            await response(scope, exchange.receive, exchange.send)


class _Exchange:
    """Counts and bounds what comes, and looks at what goes."""

    def __init__(
        self, receive: Receive, send: Send, headers: Headers, request_id: str, bytes_max: int
    ) -> None:
        self._receive = receive
        self._send = send
        declared = headers.get("content-length", "")
        self._declared = int(declared) if declared.isdecimal() and len(declared) < 20 else 0
        self._request_id = request_id
        self._bytes_max = bytes_max
        self.status = 0
        self.request_bytes = 0
        self.response_bytes = 0

    async def receive(self) -> Message:
        if self._declared > self._bytes_max:
            raise self._too_large()
        message = await self._receive()
        self.request_bytes += len(message.get("body", b""))
        if self.request_bytes > self._bytes_max:
            raise self._too_large()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self._request_id
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Cache-Control"] = "no-store"
        self.response_bytes += len(message.get("body", b""))
        await self._send(message)

    def _too_large(self) -> HTTPException:
        self._declared = 0
        return RefusedError(
            413,
            "BODY_TOO_LARGE",
            message=f"the body has more than {self._bytes_max:,} bytes",
            headers={"Connection": "close"},
        )


def one_segment_each(raw_path: bytes) -> str:
    """A path in which an encoded slash stays one, so that a name with slashes is one segment of the path.

    A % that was encoded stays so too: `unquote` of a segment gives what was meant.
    """
    segments = (unquote_to_bytes(part).decode("utf-8", "replace") for part in raw_path.split(b"/"))
    return "/".join(segment.replace("%", "%25").replace("/", "%2F") for segment in segments)


def instance_of(scope: Scope) -> str:
    """The path of a request as it was sent; what is long is cut."""
    raw_path: bytes = scope.get("raw_path") or scope["path"].encode("utf-8", "replace")
    return raw_path[:INSTANCE_LENGTH_MAX].decode("ascii", "replace")


def _record(
    scope: Scope, exchange: _Exchange, call: CurrentCall, *, started_ns: int, total_s: float
) -> CallRecord:
    # Templates and known methods only: what a caller makes up must not become a label of a metric.
    template = str(getattr(scope.get("route"), "path_format", "(no route)"))
    method = scope["method"] if scope["method"] in METHODS else "(other)"
    traceparent = Headers(scope=scope).get("traceparent", "")
    principal = call.principal
    return CallRecord(
        method=f"{method} {template}",
        transport="http",
        tenant=principal.tenant if isinstance(principal, Caller) else "",
        key_id=principal.key_id if principal else "",
        status=str(exchange.status or GONE),
        reason=call.reason,
        error_id=call.error_id,
        request_id=call.request_id,
        source=client[0] if (client := scope.get("client")) else "",
        traceparent=traceparent if TRACEPARENT_PATTERN.fullmatch(traceparent) else "",
        started_ns=started_ns,
        total_s=total_s,
        request_bytes=exchange.request_bytes,
        response_bytes=exchange.response_bytes,
    )
