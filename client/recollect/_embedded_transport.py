"""Messages to a server in this process, found by entry point."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Protocol, cast

from google.protobuf.message import Message

from recollect._extensions import load_extension
from recollect._work import Collector, Reply, Upload
from recollect.errors import FailedPreconditionError, InternalError, error_from_status
from recollect.v1 import memory_pb2 as pb


class EmbeddedReply(Protocol):
    """What the server in this process answers."""

    @property
    def code(self) -> str: ...

    @property
    def message(self) -> str: ...

    @property
    def response(self) -> Message | None: ...

    @property
    def detail(self) -> pb.ErrorDetail | None: ...


class EmbeddedServer(Protocol):
    """A server in this process; many threads may call at once."""

    def call(
        self, method: str, request: Message, *, timeout_s: float | None, credential: str | None
    ) -> EmbeddedReply: ...

    def close(self) -> None: ...


class EmbeddedTransport:
    """The same engine as a server's, without a socket."""

    def __init__(self, token: str | None) -> None:
        opened = load_extension(
            "recollect.transports",
            "embedded",
            extra="server",
            what="embedded:// (the memory server in this process)",
        )
        self._server = cast("Callable[[], EmbeddedServer]", opened)()
        self._token = token
        self._process = os.getpid()  # where the server's threads are

    def call(
        self, method: str, request: Message, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Hands one request over and waits for its answer.

        Raises:
            FailedPreconditionError: This process was forked from the one that has the memory.
        """
        if os.getpid() != self._process:
            raise FailedPreconditionError(
                f"embedded:// is the memory of the process that connected, {self._process}, and this one, "
                f"{os.getpid()}, was forked from it. Connect after the fork, each to a memory of its own; or "
                "run a server for all, and connect to unix:// or grpc://",
                reason="FORKED",
            )
        reply = self._server.call(method, request, timeout_s=timeout_s, credential=self._token)
        if reply.code != "OK":
            raise error_from_status(reply.code, reply.message, reply.detail)
        if not isinstance(reply.response, reply_type):
            raise InternalError(
                f"The embedded server answered {method} with {type(reply.response).__name__}, "
                f"expected {reply_type.__name__}",
                reason="BAD_REPLY",
            )
        return reply.response

    def stream(
        self, method: str, question: Upload, collector: Collector[Reply], *, timeout_s: float | None
    ) -> Reply:
        """The same; what a socket would carry in chunks is one part here."""
        part = self.call(method, question.whole(), pb.SearchPart, timeout_s=timeout_s)
        collector.take_first(part)
        return collector.finish()

    def upload(
        self, method: str, upload: Upload, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Hands one request over whole: all memory is shared here."""
        return self.call(method, upload.whole(), reply_type, timeout_s=timeout_s)

    def close(self) -> None:
        """Closes the server in this process; in one that was forked there is none."""
        if os.getpid() == self._process:
            self._server.close()


class AsyncEmbeddedTransport:
    """The same in worker threads, so that the event loop stays free."""

    def __init__(self, token: str | None) -> None:
        self._transport = EmbeddedTransport(token)

    async def call(
        self, method: str, request: Message, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Hands one request over and waits for its answer."""
        return await asyncio.to_thread(self._transport.call, method, request, reply_type, timeout_s=timeout_s)

    async def stream(
        self, method: str, question: Upload, collector: Collector[Reply], *, timeout_s: float | None
    ) -> Reply:
        """The same; what a socket would carry in chunks is one part here."""
        return await asyncio.to_thread(
            self._transport.stream, method, question, collector, timeout_s=timeout_s
        )

    async def upload(
        self, method: str, upload: Upload, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Hands one request over whole: all memory is shared here."""
        return await self.call(method, upload.whole(), reply_type, timeout_s=timeout_s)

    async def close(self) -> None:
        """Closes the server in this process."""
        await asyncio.to_thread(self._transport.close)
