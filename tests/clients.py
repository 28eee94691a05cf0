"""Clients under test: sync, async behind a blocking face, and raw messages past the client's own checks."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

import grpc
from google.protobuf import message_factory
from google.protobuf.message import Message

import recollect
from recollect.v1 import memory_pb2 as pb
from recollect_server.embedded import EmbeddedTransport

METHODS = {
    f"/{service.full_name}/{method.name}": method
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Full path of each call of the wire, with its descriptor."""

Reply = TypeVar("Reply", bound=Message)


class Blocking:
    """An async client or namespace with the methods of a sync one, so that one suite tests both."""

    def __init__(self, inner: object, runner: asyncio.Runner) -> None:
        self._inner = inner
        self._runner = runner

    def __getattr__(self, name: str) -> object:
        found: object = getattr(self._inner, name)
        if not callable(found):
            return found
        method = cast("Callable[..., object]", found)

        def call(*args: object, **kwargs: object) -> object:
            answer = method(*args, **kwargs)
            if inspect.isasyncgen(answer):
                return iter(self._runner.run(_listed(answer)))
            if inspect.iscoroutine(answer):
                answer = self._runner.run(cast("Coroutine[object, object, object]", answer))
            return Blocking(answer, self._runner) if isinstance(answer, recollect.AsyncNamespace) else answer

        return call


async def _listed(items: AsyncIterator[object]) -> list[object]:
    return [item async for item in items]


@contextmanager
def blocking_client(url: str, *, token: str | None = None, retries: int = 3) -> Iterator[recollect.Client]:
    """An async client in a loop of its own, with the face of a sync one."""
    with asyncio.Runner() as runner:

        async def connect() -> recollect.AsyncClient:
            return recollect.connect_async(url, token=token, retries=retries)

        client = runner.run(connect())
        try:
            yield cast("recollect.Client", Blocking(client, runner))
        finally:
            runner.run(client.close())


class Opening(Protocol):
    """Makes a client that has the face of a sync one."""

    def __call__(
        self, url: str, *, token: str | None = None, retries: int = 3
    ) -> AbstractContextManager[recollect.Client]: ...


OPEN: dict[str, Opening] = {"sync": recollect.connect, "async": blocking_client}
"""How a client is made, by what its calls are."""


@dataclass(frozen=True)
class Answer(Generic[Reply]):
    """What came back for a raw message: a status name, and either a response or what went wrong."""

    code: str
    message: str
    detail: pb.ErrorDetail
    response: Reply | None


class Raw(Protocol):
    """Sends a message of the wire as it is."""

    def __call__(self, method: str, request: Message, /) -> Answer[Message]: ...


def raw_grpc(
    channel: grpc.Channel, *, token: str | None = None
) -> Callable[[str, Message | bytes], Answer[Message]]:
    """Over a channel; bytes, too, which need not be a message."""
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)

    def call(method: str, request: Message | bytes) -> Answer[Message]:
        path = path_of(method)
        reply_type = message_factory.GetMessageClass(METHODS[path].output_type)
        send: grpc.UnaryUnaryMultiCallable[Message | bytes, Message] = channel.unary_unary(
            path,
            request_serializer=_serialized,
            response_deserializer=reply_type.FromString,
        )
        return answer_of(lambda: send(request, timeout=60, metadata=metadata))

    return call


def _serialized(request: Message | bytes) -> bytes:
    return request if isinstance(request, bytes) else request.SerializeToString()


def answer_of(call: Callable[[], Message]) -> Answer[Message]:
    """Runs a gRPC call; its error as data."""
    try:
        return Answer("OK", "", pb.ErrorDetail(), call())
    except grpc.RpcError as error:
        failed = cast("grpc.Call", error)
        trailing = dict(failed.trailing_metadata() or ())
        detail = trailing.get("recollect-error-bin", b"")
        assert isinstance(detail, bytes)
        return Answer(failed.code().name, failed.details() or "", pb.ErrorDetail.FromString(detail), None)


def raw_embedded(transport: EmbeddedTransport) -> Raw:
    """In this process."""

    def call(method: str, request: Message) -> Answer[Message]:
        reply = transport.call(path_of(method), request, timeout_s=60, credential=None)
        return Answer(reply.code, reply.message, reply.detail or pb.ErrorDetail(), reply.response)

    return call


def path_of(method: str) -> str:
    """The full path of a call that is named without its service."""
    return next(path for path in METHODS if path.endswith(f"/{method}"))
