"""The gRPC server: the endpoint's routes on sockets, with health and reflection."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from recollect_server.domain.errors import InternalError, InvalidArgumentError, RecollectError
from recollect_server.domain.limits import Limits
from recollect_server.rpc.endpoint import SERVICES, Endpoint, Route
from recollect_server.rpc.listen import ListenAddress
from recollect_server.rpc.status import detail_of, status_of

log = logging.getLogger(__name__)

ERROR_DETAIL_KEY = "recollect-error-bin"

ENVELOPE_BYTES = 64 * 1024
"""Room for names and numbers beside a message's tensors."""

Context = grpc.aio.ServicerContext[bytes, Message]


class RpcServer:
    """Serves an endpoint until it is stopped.

    Args:
        endpoint: What to serve.
        listen: Where; at least one address.
        limits: `message_bytes_max` bounds what is received.
    """

    def __init__(self, endpoint: Endpoint, listen: list[ListenAddress], *, limits: Limits) -> None:
        self._endpoint = endpoint
        self._listen = listen
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limits.message_bytes_max + ENVELOPE_BYTES),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ]
        )
        self._server.add_generic_rpc_handlers(tuple(self._handlers()))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [service.full_name for service in SERVICES]
        reflection.enable_server_reflection(
            [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server
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
                # In dev mode whoever can open the socket may do everything: that is its owner alone.
                os.chmod(address.path, 0o600)
        for name in ("", *(service.full_name for service in SERVICES)):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return bound

    async def stop(self, *, grace_s: float) -> None:
        """Drains: not healthy, no new calls, those in flight get `grace_s` to finish."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
        await asyncio.to_thread(self._endpoint.drain)

    def _bind(self, address: ListenAddress) -> str:
        # gRPC replaces a socket file, which is right after a crash and wrong while its server runs.
        if address.path is not None and _is_served(address.path):
            raise OSError(f"cannot listen on {address}: another server does already")
        try:
            port = self._server.add_insecure_port(address.grpc_target)
        except RuntimeError as refused:
            raise OSError(f"cannot listen on {address}: {refused}") from refused
        return str(address.with_port(port))

    def _handlers(self) -> list[grpc.GenericRpcHandler]:
        by_service: dict[str, dict[str, grpc.RpcMethodHandler[bytes, Message]]] = {}
        for route in self._endpoint.routes.values():
            _, service, method = route.path.split("/")
            by_service.setdefault(service, {})[method] = grpc.unary_unary_rpc_method_handler(
                self._unary(route),
                # Messages are read in the handler: gRPC would answer what is none with UNKNOWN.
                response_serializer=_serialized,
            )
        return [grpc.method_handlers_generic_handler(name, calls) for name, calls in by_service.items()]

    def _unary(self, route: Route) -> Callable[[bytes, Context], Awaitable[Message]]:
        async def unary(request: bytes, context: Context) -> Message:
            try:
                caller = self._endpoint.authenticate(_credential(context))
                future = self._endpoint.start(
                    caller,
                    route.path,
                    request=_message(route, request),
                    deadline_s=time.monotonic() + context.time_remaining(),
                )
                return await asyncio.wrap_future(future)
            except RecollectError as error:
                return await _abort(context, error)

        return unary


async def _abort(context: Context, error: RecollectError) -> Message:
    detail = detail_of(error).SerializeToString()
    await context.abort(status_of(error), error.message, ((ERROR_DETAIL_KEY, detail),))
    raise InternalError(error_id="") from error  # abort raises; this line is for the type checker


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


def _message(route: Route, request: bytes) -> Message:
    try:
        return route.request_type.FromString(request)
    except DecodeError as malformed:
        raise InvalidArgumentError("request", f"{malformed}") from None


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


def _credential(context: Context) -> str | None:
    """The token of `authorization: Bearer TOKEN`, or None."""
    for key, value in context.invocation_metadata() or grpc.aio.Metadata():
        if key == "authorization":
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            scheme, _, token = text.partition(" ")
            return token if scheme.lower() == "bearer" and token else None
    return None
