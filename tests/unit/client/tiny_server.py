"""A real gRPC server that answers with what a test scripts, for what a sound server rarely does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
from google.protobuf.message import Message

from recollect.v1 import memory_pb2 as pb

Context = grpc.ServicerContext
Handler = Callable[[bytes, Context], Message]
INFO = pb.GetServerInfoResponse(version="1", device="cpu", limits=pb.Limits(message_bytes_max=2**20))


class TinyServer(grpc.GenericRpcHandler):
    """Calls `handler` for every method, and remembers what came."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, bytes]] = []
        self.metadata: list[dict[str, str | bytes]] = []
        self.handlers: dict[str, Handler] = {"GetServerInfo": answer_info}

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[bytes, Message] | None:
        """Finds the handler of a method by its last name."""
        name = handler_call_details.method.rpartition("/")[2]
        handler = self.handlers.get(name)
        if handler is None:
            return None

        def answer(request: bytes, context: Context) -> Message:
            self.requests.append((name, request))
            self.metadata.append(dict(context.invocation_metadata()))
            return handler(request, context)

        return grpc.unary_unary_rpc_method_handler(answer, response_serializer=_serialize)

    def count(self, name: str) -> int:
        """How often a method was called."""
        return sum(called == name for called, _ in self.requests)


@contextmanager
def serving(
    server: TinyServer, folder: Path, credentials: grpc.ServerCredentials | None = None
) -> Iterator[str]:
    """Runs the server, on a unix socket or with credentials on localhost, and yields its URL."""
    running = grpc.server(ThreadPoolExecutor(4), handlers=[server])
    if credentials is None:
        url = f"unix://{folder / 's.sock'}"
        running.add_insecure_port(url.replace("unix://", "unix:"))
    else:
        url = f"grpcs://localhost:{running.add_secure_port('localhost:0', credentials)}"
    running.start()
    try:
        yield url
    finally:
        running.stop(grace=None).wait()


def answer_info(request: bytes, context: Context) -> Message:
    """Advertises generous limits."""
    return INFO


def refuse(
    context: Context, code: grpc.StatusCode, message: str, detail: pb.ErrorDetail | None = None
) -> Message:
    """Ends a call as the real server does: a status, and the detail in trailing metadata."""
    if detail is not None:
        context.set_trailing_metadata((("recollect-error-bin", detail.SerializeToString()),))
    context.abort(code, message)


DRAINING = pb.ErrorDetail(reason="DRAINING", retry_after_ms=1)


def failing_first(
    times: int,
    then: Message,
    *,
    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE,
    detail: pb.ErrorDetail = DRAINING,
) -> Handler:
    """A handler that refuses so many calls, and then answers."""
    left = [times]

    def handler(request: bytes, context: Context) -> Message:
        if left[0] > 0:
            left[0] -= 1
            return refuse(context, code, "not now", detail)
        return then

    return handler


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
