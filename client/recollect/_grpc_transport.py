"""Messages over gRPC: TCP, with TLS or without, or a unix socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Literal, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from recollect._async_direct import AsyncDirect
from recollect._direct import Direct
from recollect._regions import REFUSALS, Region, RegionPool, open_requests
from recollect._tls import TLS, channel_credentials
from recollect._tracing import traced
from recollect._url import Target
from recollect._work import OPEN_REGION, SEARCH, Collector, Reply, Upload
from recollect.errors import (
    ClosedError,
    InternalError,
    InvalidArgumentError,
    RecollectError,
    UnavailableError,
    error_from_status,
)
from recollect.v1 import memory_pb2 as pb

_ERROR_KEY = "recollect-error-bin"

_OPTIONS: list[tuple[str, int]] = [
    # Calls are split under the server's own limit, which it enforces.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Notice a peer that vanished while a call is in flight; no pings without calls, which servers punish.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
    # A server that is back is found soon (gRPC's own default waits up to two minutes).
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Each client has a connection of its own, and a memory server is not behind a web proxy.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]

Metadata = tuple[tuple[str, str], ...]


class GrpcTransport:
    """One channel, opened at the first call."""

    def __init__(
        self, target: Target, token: str | None, tls: TLS | None = None, *, direct: bool = True
    ) -> None:
        self._url = target.url
        self._direct = Direct(target.socket_path if direct else None, target.url, token)
        self._metadata = _bearer(token)
        credentials = _encryption(target, tls)
        if credentials is None:
            self._channel = grpc.insecure_channel(target.address, options=_OPTIONS)
        else:
            self._channel = grpc.secure_channel(target.address, credentials, options=_OPTIONS)
        self._regions = RegionPool(target.socket_path)
        self._translated = _Translated(target.url)
        self._methods: dict[str, grpc.UnaryUnaryMultiCallable[Message, Message]] = {}

    def call(
        self, method: str, request: Message, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Sends one request and waits for its answer."""
        left_s = _time_left(timeout_s)
        with traced(method, self._url) as headers, self._translated:
            raw = self._direct.call(method, request, left_s=left_s, headers=headers)
            if raw is not None:
                return reply_type.FromString(raw)
            multicallable = self._methods.get(method)
            if multicallable is None:
                multicallable = self._methods[method] = self._channel.unary_unary(
                    method,
                    request_serializer=_serialize,
                    response_deserializer=reply_type.FromString,
                )
            reply = multicallable(request, timeout=left_s(), metadata=self._metadata + headers)
        return cast("Reply", reply)  # a method has one type of answer

    def stream(
        self, method: str, question: Upload, collector: Collector[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Sends one request and hands each part of its answer on, or all of it in shared memory."""
        left_s = _time_left(timeout_s)
        region = self._region(question.size_bytes, left_s)
        if region is not None:
            with self._regions.lent(region) as memory:
                asked = question.beside(region)
                answer = self.call(SEARCH, asked, pb.SearchResponse, timeout_s=left_s())
                collector.take_shared(answer, memory, keep=self._regions.may_keep())
                return collector.finish()
        with traced(method, self._url) as headers, self._translated:
            open_stream: grpc.UnaryStreamMultiCallable[Message, bytes] = self._channel.unary_stream(
                method, request_serializer=_serialize
            )
            parts = open_stream(question.whole(), timeout=left_s(), metadata=self._metadata + headers)
            try:
                for part in parts:
                    collector.take(part)
            finally:
                parts.cancel()  # of a call that is over: nothing
            return collector.finish()

    def upload(
        self, method: str, upload: Upload, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Sends one request, its tensors in shared memory if there is some, and waits for its answer."""
        left_s = _time_left(timeout_s)
        region = self._region(upload.size_bytes, left_s)
        if region is not None:
            with self._regions.lent(region):
                return self.call(method, upload.beside(region), reply_type, timeout_s=left_s())
        return self.call(method, upload.whole(), reply_type, timeout_s=left_s())

    def _region(self, size_bytes: int, left_s: Callable[[], float | None]) -> Region | None:
        """One for a call; None where the server shares none, or all are in use."""
        region = self._regions.take(size_bytes)
        if region is not None or not self._regions.may_open():
            return region
        asked_at_s = time.monotonic()
        try:
            larger, exact = open_requests(size_bytes)
            try:
                opened = self.call(OPEN_REGION, larger, pb.OpenRegionResponse, timeout_s=left_s())
            except InvalidArgumentError:
                opened = self.call(OPEN_REGION, exact, pb.OpenRegionResponse, timeout_s=left_s())
            return self._regions.attach(opened, left_s())
        except BaseException as error:
            self._regions.failed(error, asked_at_s=asked_at_s, left_s=left_s())
            if not isinstance(error, REFUSALS):
                raise
            return None

    def close(self) -> None:
        """Closes the channel; calls in flight end with an error."""
        self._translated.is_closed = True
        self._direct.close()
        self._regions.close()
        self._channel.close()


class AsyncGrpcTransport:
    """One channel, opened at the first call, in the event loop of that call."""

    def __init__(
        self, target: Target, token: str | None, tls: TLS | None = None, *, direct: bool = True
    ) -> None:
        self._url = target.url
        self._direct = AsyncDirect(target.socket_path if direct else None, target.url, token)
        self._address = target.address
        self._metadata = _bearer(token)
        self._credentials = _encryption(target, tls)
        self._channel: grpc.aio.Channel | None = None
        self._regions = RegionPool(target.socket_path)
        self._translated = _Translated(target.url)
        self._methods: dict[str, grpc.aio.UnaryUnaryMultiCallable[Message, Message]] = {}

    async def call(
        self, method: str, request: Message, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Sends one request and waits for its answer."""
        left_s = _time_left(timeout_s)
        with traced(method, self._url) as headers, self._translated:
            raw = await self._direct.call(method, request, left_s=left_s, headers=headers)
            if raw is not None:
                return reply_type.FromString(raw)
            multicallable = self._methods.get(method)
            if multicallable is None:
                multicallable = self._methods[method] = self._opened().unary_unary(
                    method,
                    request_serializer=_serialize,
                    response_deserializer=reply_type.FromString,
                )
            reply = await multicallable(request, timeout=left_s(), metadata=self._metadata + headers)
        return cast("Reply", reply)  # a method has one type of answer

    async def stream(
        self, method: str, question: Upload, collector: Collector[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Sends one request and hands each part of its answer on, or all of it in shared memory."""
        left_s = _time_left(timeout_s)
        region = await self._region(question.size_bytes, left_s)
        if region is not None:
            with self._regions.lent(region) as memory:
                asked = question.beside(region)
                answer = await self.call(SEARCH, asked, pb.SearchResponse, timeout_s=left_s())
                collector.take_shared(answer, memory, keep=self._regions.may_keep())
                return collector.finish()
        with traced(method, self._url) as headers, self._translated:
            open_stream: grpc.aio.UnaryStreamMultiCallable[Message, bytes] = self._opened().unary_stream(
                method, request_serializer=_serialize
            )
            parts = open_stream(question.whole(), timeout=left_s(), metadata=self._metadata + headers)
            try:
                async for part in parts:
                    collector.take(part)
            finally:
                parts.cancel()  # of a call that is over: nothing
            return collector.finish()

    async def upload(
        self, method: str, upload: Upload, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Sends one request, its tensors in shared memory if there is some, and waits for its answer."""
        left_s = _time_left(timeout_s)
        region = await self._region(upload.size_bytes, left_s)
        if region is not None:
            with self._regions.lent(region):
                return await self.call(method, upload.beside(region), reply_type, timeout_s=left_s())
        return await self.call(method, upload.whole(), reply_type, timeout_s=left_s())

    async def _region(self, size_bytes: int, left_s: Callable[[], float | None]) -> Region | None:
        """One for a call; None where the server shares none, or all are in use."""
        region = self._regions.take(size_bytes)
        if region is not None or not self._regions.may_open():
            return region
        asked_at_s = time.monotonic()
        try:
            larger, exact = open_requests(size_bytes)
            try:
                opened = await self.call(OPEN_REGION, larger, pb.OpenRegionResponse, timeout_s=left_s())
            except InvalidArgumentError:
                opened = await self.call(OPEN_REGION, exact, pb.OpenRegionResponse, timeout_s=left_s())
            attaching = asyncio.ensure_future(asyncio.to_thread(self._regions.attach, opened, left_s()))
            try:
                async with asyncio.timeout(left_s()):  # all threads may be busy
                    return await asyncio.shield(attaching)
            except BaseException:
                attaching.add_done_callback(_let_go)  # the thread goes on, and nobody waits for it
                raise
        except BaseException as error:
            self._regions.failed(error, asked_at_s=asked_at_s, left_s=left_s())
            if not isinstance(error, REFUSALS):
                raise
            return None

    async def close(self) -> None:
        """Closes the channel; calls in flight end with an error."""
        self._translated.is_closed = True
        self._direct.close()
        self._regions.close()
        if self._channel is not None:
            await self._channel.close()

    def _opened(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = self._open()
        return self._channel

    def _open(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(self._address, options=_OPTIONS)
        return grpc.aio.secure_channel(self._address, self._credentials, options=_OPTIONS)


class _Translated:
    """Makes an error of the tree of what gRPC raises, in all calls of a transport."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.is_closed = False

    def __enter__(self) -> None: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        # Those that are none of a call: "Cannot invoke RPC on closed channel!", "Channel is closed."
        of_closed = (grpc.RpcError, ValueError, grpc.aio.UsageError, UnavailableError)
        if self.is_closed and isinstance(error, of_closed):
            raise closed(self._url) from error
        if isinstance(error, grpc.RpcError):
            raise _translate(self._url, *_status(error)) from error
        if isinstance(error, DecodeError):
            raise InternalError(f"The answer of {self._url} is none", reason="BAD_REPLY") from error
        return False


def closed(url: str) -> ClosedError:
    """The error for any use after close."""
    return ClosedError(f"the client of {url} is closed")


def _let_go(attaching: asyncio.Task[Region]) -> None:
    """Gives up a region that came when nobody wanted it any more."""
    if not attaching.cancelled() and attaching.exception() is None:
        attaching.result().close()


def _time_left(timeout_s: float | None) -> Callable[[], float | None]:
    """What is left of a call's time, for a call that takes several messages; None: it has no end."""
    end_s = None if timeout_s is None else time.monotonic() + timeout_s
    return lambda: None if end_s is None else max(0.0, end_s - time.monotonic())


def _encryption(target: Target, tls: TLS | None) -> grpc.ChannelCredentials | None:
    return channel_credentials(tls or TLS()) if target.kind == "grpcs" else None


def _bearer(token: str | None) -> Metadata:
    return () if token is None else (("authorization", f"Bearer {token}"),)


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _status(
    error: grpc.RpcError,
) -> tuple[grpc.StatusCode, str | None, Iterable[tuple[str, str | bytes]] | None]:
    call = cast("grpc.Call", error)  # gRPC's errors of calls all are; their types do not say so
    return call.code(), call.details(), call.trailing_metadata()


def _translate(
    url: str,
    code: grpc.StatusCode,
    details: str | None,
    trailing: Iterable[tuple[str, str | bytes]] | None,
) -> RecollectError:
    detail = _detail(trailing or ())
    message = details or ""
    if detail is None and code is grpc.StatusCode.UNAVAILABLE:
        message = f"no memory server answers at {url}: {message}"
    elif detail is None and code is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = f"{url} did not answer in time: {message}"
    return error_from_status(code.name, message, detail)


def _detail(trailing: Iterable[tuple[str, str | bytes]]) -> pb.ErrorDetail | None:
    for key, value in trailing:
        if key == _ERROR_KEY and isinstance(value, bytes):
            try:
                return pb.ErrorDetail.FromString(value)
            except DecodeError:
                return None
    return None
