"""`embedded://`: the same endpoint in the caller's process, without a socket.

The client finds `open_transport` through the entry point `recollect.transports`, so it never imports
the server; requests and replies are the messages of the wire.
"""

from __future__ import annotations

import time
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import NamedTuple

from google.protobuf.message import Message

from recollect.v1 import memory_pb2 as pb
from recollect_server.bootstrap import build_endpoint
from recollect_server.domain.errors import DeadlineExceededError, RecollectError
from recollect_server.registry.authenticators import SingleTenant
from recollect_server.rpc.endpoint import Endpoint
from recollect_server.rpc.status import detail_of, status_of
from recollect_server.settings import Settings

EMBEDDED_TENANT = "embedded"


class EmbeddedReply(NamedTuple):
    """What gRPC would have sent: a status, and a response or what went wrong."""

    code: str
    message: str
    response: Message | None
    detail: pb.ErrorDetail | None


class EmbeddedTransport:
    """Calls an endpoint; thread-safe, since the endpoint's dispatcher orders the calls."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    def call(
        self, method: str, request: Message, *, timeout_s: float | None, credential: str | None
    ) -> EmbeddedReply:
        """Makes one call and waits for its reply; never raises what a status can say."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            caller = self._endpoint.authenticate(credential)
            future = self._endpoint.start(caller, method, request=request, deadline_s=deadline_s)
            return EmbeddedReply("OK", "", future.result(timeout_s), None)
        except FutureTimeoutError:
            # The work goes on and its effect stays, as with a call whose client hung up.
            return _failed(DeadlineExceededError(f"no reply within {timeout_s} s"))
        except RecollectError as error:
            return _failed(error)

    def close(self) -> None:
        """Waits for what is queued; the memories go when nothing refers to the transport any more."""
        self._endpoint.drain()


def open_transport() -> EmbeddedTransport:
    """A memory of this process's own, on the device and with the limits of the settings."""
    return EmbeddedTransport(build_endpoint(Settings(), SingleTenant(EMBEDDED_TENANT)))


def _failed(error: RecollectError) -> EmbeddedReply:
    return EmbeddedReply(status_of(error).name, error.message, None, detail_of(error))
