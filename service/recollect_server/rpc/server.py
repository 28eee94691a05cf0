"""The gRPC server: the endpoint's routes on sockets, with health and reflection."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import cast
from urllib.parse import unquote

import grpc
import grpc.aio
from grpc_reflection.v1alpha import reflection

from recollect.v1 import memory_pb2 as pb
from recollect_server.domain.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    RecollectError,
)
from recollect_server.domain.limits import Limits
from recollect_server.domain.listen import ListenAddress
from recollect_server.rpc.call import DEADLINE_S_MAX, Arrival
from recollect_server.rpc.direct import DirectServer
from recollect_server.rpc.endpoint import SERVICES, Endpoint, Received, Response, Route, Sent
from recollect_server.rpc.hand_over import HandOver
from recollect_server.rpc.health import Health
from recollect_server.rpc.parts import ENVELOPE_BYTES, read_message
from recollect_server.rpc.patience import Patience
from recollect_server.rpc.regions import Regions
from recollect_server.rpc.status import detail_of, status_of
from recollect_server.rpc.streams import SearchStream

log = logging.getLogger(__name__)

ERROR_DETAIL_KEY = "recollect-error-bin"

LINGER_S = 2.0
"""How long the end of an answer, some megabytes in socket buffers, may take when the server ends."""

Context = grpc.aio.ServicerContext[bytes, bytes]


class RpcServer:
    """Serves an endpoint until it is stopped.

    Args:
        endpoint: What to serve.
        listen: Where; at least one address.
        limits: `message_bytes_max` bounds what is received.
        regions: Shared with callers at unix sockets.
        credentials: Certificates for the TCP addresses; None: they are served without TLS.
        is_dev: Whoever reaches it may do everything, so its unix sockets are its owner's alone, and it
            describes itself (gRPC reflection).
    """

    def __init__(
        self,
        endpoint: Endpoint,
        listen: list[ListenAddress],
        *,
        limits: Limits,
        regions: Regions,
        credentials: grpc.ServerCredentials | None = None,
        is_dev: bool = False,
    ) -> None:
        self._endpoint = endpoint
        self._listen = listen
        self._limits = limits
        self._patience = Patience(limits.receive_s_max)
        self._credentials = credentials
        self._socket_mode = 0o600 if is_dev else 0o660
        paths = [address.path for address in listen if address.path]
        self._hand_overs = [HandOver(regions, path, mode=self._socket_mode) for path in paths]
        self._direct = [DirectServer(endpoint, path, mode=self._socket_mode, limits=limits) for path in paths]
        self._health = Health()
        self._ends_s = math.inf
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limits.message_bytes_max + ENVELOPE_BYTES),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
                # A megabyte of compressed zeros is a gigabyte, and is unpacked before its size is checked.
                # Tensors would hardly shrink: only plain messages are taken.
                ("grpc.compression_enabled_algorithms_bitset", 1),
                ("grpc.per_message_decompression", 0),
            ]
        )
        self._server.add_generic_rpc_handlers((*self._handlers(), self._health.handler()))
        if is_dev:
            names = [service.full_name for service in SERVICES]
            reflection.enable_server_reflection(
                [*names, Health.SERVICE, reflection.SERVICE_NAME], self._server
            )

    async def start(self) -> list[str]:
        """Binds and serves.

        Returns:
            The addresses, with the port that was chosen where 0 was asked for.

        Raises:
            OSError: An address cannot be bound.
        """
        bound = [self._bind(address) for address in self._listen]
        await self._server.start()
        for address in self._listen:
            if address.path is not None:
                os.chmod(address.path, self._socket_mode)
        for hand_over in self._hand_overs:
            hand_over.start()
        for direct in self._direct:
            await direct.start()
        self._health.is_serving = True
        return bound

    async def drain(self) -> None:
        """Not healthy, no new calls; those in flight go on."""
        self._endpoint.is_draining = True
        self._health.is_serving = False

    async def stop(self, *, grace_s: float) -> None:
        """Drains, and ends when the calls in flight have, or after `grace_s`."""
        self._ends_s = time.monotonic() + grace_s
        await self.drain()
        await asyncio.gather(
            self._stop_grpc(grace_s), *(direct.stop(grace_s=grace_s) for direct in self._direct)
        )
        for hand_over in self._hand_overs:
            await hand_over.stop()

    async def _stop_grpc(self, grace_s: float) -> None:
        stopping = asyncio.ensure_future(self._server.stop(grace_s))
        ended, waiting = await asyncio.wait({stopping}, timeout=grace_s + LINGER_S)
        for done in ended:
            done.result()
        if waiting:  # gRPC would wait for 20 s more, and whoever supervises the server might lose patience
            log.info("ended without callers who take nothing of what was sent to them")

    def _bind(self, address: ListenAddress) -> str:
        # gRPC replaces a socket file, which is right after a crash and wrong while its server runs.
        if address.path is not None and _is_served(address.path):
            raise OSError(f"cannot listen on {address}: another server does already")
        try:
            port = self._add_port(address)
        except RuntimeError as refused:
            raise OSError(f"cannot listen on {address}: {refused}") from refused
        return address.with_port(port).url(tls=self._credentials is not None)

    def _add_port(self, address: ListenAddress) -> int:
        if self._credentials is None or address.path is not None:
            return self._server.add_insecure_port(address.grpc_target)
        return self._server.add_secure_port(address.grpc_target, self._credentials)

    def _handlers(self) -> list[grpc.GenericRpcHandler]:
        by_service: dict[str, dict[str, grpc.RpcMethodHandler[bytes, bytes]]] = {}
        for route in self._endpoint.routes.values():
            _, service, method = route.path.split("/")
            # On the wire a unary call is a stream of one message. Taken as a stream, the message stays in the
            # transport's window until it is asked for: nothing of it is read before the caller is known.
            by_service.setdefault(service, {})[method] = _handler(route)(
                # Messages are read in the handler: gRPC would answer what is none with UNKNOWN. They are
                # written there too, since their bytes are counted.
                self._answer(route)
            )
        return [grpc.method_handlers_generic_handler(name, calls) for name, calls in by_service.items()]

    def _answer(self, route: Route) -> Callable[[object, Context], Awaitable[bytes | None]]:
        async def answer(_: object, context: Context) -> bytes | None:
            async def receive(route: Route) -> Received:
                # The first byte of the message that is read: its caller is known and let in.
                try:
                    with self._patience.wait():
                        raw = await context.read()
                except TimeoutError:
                    raise DeadlineExceededError(
                        f"the request did not arrive within {self._limits.receive_s_max} s"
                    ) from None
                if not isinstance(raw, bytes):  # the call was closed without a message
                    raise InvalidArgumentError("request", "is missing")
                return Received(read_message(route.request_type, raw, self._limits), len(raw))

            async def send(response: Response) -> Sent[bytes | None]:
                if isinstance(response, SearchStream):
                    return Sent(None, await self._write(context, response))
                raw = response.SerializeToString()
                return Sent(raw, len(raw))

            try:
                return await self._endpoint.call(_arrival(route, context), receive, send=send)
            except RecollectError as error:
                status, told, detail = status_of(error), error.message, detail_of(error)
            # Not while the error is handled: gRPC keeps what an abort raises in a circle, and with it all
            # that the tracebacks behind it hold: the whole message, until garbage is collected.
            return await _abort(context, status, told, detail)

        return answer

    async def _write(self, context: Context, stream: SearchStream) -> int:
        """Sends a stream, each part when the one before it has left; returns how many bytes."""
        sent_bytes = 0
        async with contextlib.aclosing(stream.parts()) as parts:
            async for part in parts:
                try:
                    # Who does not read makes the server hold the answer: not for ever.
                    with self._patience.wait():
                        await context.write(part)
                except TimeoutError:
                    raise DeadlineExceededError(
                        f"a part of the answer was not taken within {self._limits.receive_s_max} s"
                    ) from None
                except (grpc.aio.InternalError, grpc.aio.UsageError):  # its caller left
                    raise asyncio.CancelledError from None
                sent_bytes += len(part)
        if self._endpoint.is_draining:
            # The connection is closed with its last call. What the caller sends then (he acknowledges what he
            # reads) is answered by a reset, and of the answer what is still in the kernel's buffers is lost.
            # Not to the end of the grace: what is complete would be cut off.
            await asyncio.sleep(max(0.0, min(LINGER_S, (self._ends_s - time.monotonic()) / 2)))
        return sent_bytes


async def _abort(context: Context, status: grpc.StatusCode, message: str, detail: pb.ErrorDetail) -> bytes:
    try:
        await context.abort(status, message, ((ERROR_DETAIL_KEY, detail.SerializeToString()),))
    except grpc.aio.InternalError:
        # The transport ended the call first (its message was too large, its caller left): nobody is told,
        # and gRPC would log a traceback for each.
        raise asyncio.CancelledError from None
    raise InternalError(error_id="")  # abort raises; this line is for the type checker


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


def _handler(route: Route) -> Callable[..., grpc.RpcMethodHandler[bytes, bytes]]:
    return grpc.stream_stream_rpc_method_handler if route.streams else grpc.stream_unary_rpc_method_handler


def _arrival(route: Route, context: Context) -> Arrival:
    sent: dict[str, str] = {}
    for key, value in context.invocation_metadata() or grpc.aio.Metadata():
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        # Who shows two credentials shows none: a proxy and this server might not take the same.
        sent[key] = "" if key == "authorization" and key in sent else sent.get(key, text)
    left_s = cast("float | None", context.time_remaining())  # gRPC's types leave the None out
    return Arrival(
        path=route.path,
        credential=_credential(sent.get("authorization", "")),
        transport="grpc",
        source=_host(context.peer()),
        deadline_s=None if left_s is None or left_s > DEADLINE_S_MAX else time.monotonic() + left_s,
        request_id=sent.get("x-request-id", ""),
        traceparent=sent.get("traceparent", ""),
    )


def _host(peer: str) -> str:
    """The host in gRPC's name of a peer, as "ipv4:127.0.0.1:5000" or "unix:"."""
    kind, _, address = peer.partition(":")
    return kind if kind == "unix" else unquote(address).rpartition(":")[0].strip("[]")


def _credential(authorization: str) -> str | None:
    """The token of `authorization: Bearer TOKEN`, or None."""
    scheme, _, token = authorization.partition(" ")
    return token if scheme.lower() == "bearer" and token else None
