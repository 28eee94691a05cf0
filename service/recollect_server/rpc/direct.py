"""The endpoint's routes on a unix socket without gRPC: for callers on this machine, to whom gRPC costs most.

A frame is `PREFIX`, a head (`DirectCall`, or `DirectAnswer`) and a message, which may be empty. One call at a
time on a connection; who closes it while he waits gives the call up, as one that is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import struct
import time

import grpc
from google.protobuf.message import DecodeError, Message

from recollect.v1 import memory_pb2 as pb
from recollect_server.domain.errors import DeadlineExceededError, MessageTooLargeError, RecollectError
from recollect_server.domain.limits import Limits
from recollect_server.rpc.call import DEADLINE_S_MAX, Arrival
from recollect_server.rpc.endpoint import Endpoint, Received, Response, Route, Sent
from recollect_server.rpc.parts import ENVELOPE_BYTES, read_message
from recollect_server.rpc.patience import Patience
from recollect_server.rpc.side_socket import SideSocket
from recollect_server.rpc.status import detail_of, status_of

log = logging.getLogger(__name__)

SUFFIX = ".direct"
"""After the path of gRPC's socket. Clients know it too, and the two that follow."""

MARK = b"RCD1"
"""Said to whom is let in, and each frame begins with it. The last byte is the version."""

PREFIX = struct.Struct("<4sII")
"""The mark, bytes of the head, bytes of the message."""

HEAD_BYTES_MAX = 16 * 1024
BUFFER_BYTES = 64 * 1024
"""Of a connection: what comes without having been asked for waits here, and then in the system."""

CONNECTIONS_MAX = 256
"""Who comes when there are so many is turned away, and takes gRPC."""


class DirectServer:
    """Serves an endpoint at one socket.

    Args:
        endpoint: What to serve.
        path: Of gRPC's socket.
        mode: Who may connect.
        limits: `message_bytes_max` bounds what is received.
    """

    def __init__(self, endpoint: Endpoint, path: str, *, mode: int, limits: Limits) -> None:
        self.endpoint = endpoint
        self.limits = limits
        self.patience = Patience(limits.receive_s_max)
        self.connections: set[Connection] = set()
        self.is_stopping = False
        self._socket = SideSocket(path, SUFFIX, mode=mode, purpose="callers take gRPC for small calls too")
        self._server: asyncio.Server | None = None
        self._gone: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Binds and serves. Without it callers take gRPC."""
        listener = self._socket.listen()
        if listener is not None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_unix_server(lambda: Connection(self), sock=listener)

    async def stop(self, *, grace_s: float) -> None:
        """Takes no more connections; ends when the calls in flight have, or after `grace_s`."""
        if self._server is None:
            return
        self.is_stopping = True
        self._socket.remove()
        self._server.close()
        for connection in list(self.connections):
            connection.close_when_idle()
        # Until they are gone, not until their calls are over: the end of an answer may wait for its caller.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self.connections:
                    self._gone = asyncio.get_running_loop().create_future()
                    await self._gone
        for connection in list(self.connections):
            connection.abort()
        self._server = None

    def gone(self, connection: Connection) -> None:
        """Told by one that is closed."""
        self.connections.discard(connection)
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)


class Connection(asyncio.BufferedProtocol):
    """One caller, one call at a time."""

    def __init__(self, server: DirectServer) -> None:
        self._server = server
        self._endpoint = server.endpoint
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._rest: memoryview | None = None  # of a message that is longer than the buffer: where it goes
        self._arrived: asyncio.Future[None] | None = None  # of the message whose end is awaited
        self._drained: asyncio.Future[None] | None = None  # set while the caller is slow to read
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._server.is_stopping or len(self._server.connections) >= CONNECTIONS_MAX:
            transport.abort()
            return
        self._server.connections.add(self)
        transport.write(MARK)

    def connection_lost(self, exc: Exception | None) -> None:
        """The call that is under way is given up. See `asyncio.BaseProtocol`."""
        self._server.gone(self)
        if self.task is not None:
            self.task.cancel()

    def get_buffer(self, sizehint: int) -> memoryview:
        """See `asyncio.BufferedProtocol`."""
        return self._view[self._filled :] if self._rest is None else self._rest

    def buffer_updated(self, nbytes: int) -> None:
        """See `asyncio.BufferedProtocol`."""
        if self._rest is not None:
            self._rest = self._rest[nbytes:] if nbytes < len(self._rest) else None
        else:
            self._filled += nbytes
            if self._filled == BUFFER_BYTES:
                self._transport.pause_reading()
            if self.task is None:
                self._begin()
        if self._arrived is not None and self._rest is None and not self._arrived.done():
            self._arrived.set_result(None)

    def pause_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """See `asyncio.BaseProtocol`."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def close_when_idle(self) -> None:
        """Now, or after the call that is under way."""
        if self.task is None:
            self._transport.close()

    def abort(self) -> None:
        """At once."""
        self._transport.abort()

    def _begin(self) -> None:
        """Begins with a call if its head is there."""
        if self._filled < PREFIX.size:
            return
        mark, head_bytes, message_bytes = PREFIX.unpack_from(self._buffer)
        start = PREFIX.size + head_bytes
        if mark != MARK or head_bytes > HEAD_BYTES_MAX:
            self._transport.abort()  # whoever that is does not speak this
            return
        if self._filled < start:
            return
        try:
            head = pb.DirectCall.FromString(bytes(self._view[PREFIX.size : start]))
        except DecodeError:
            self._transport.abort()
            return
        self.task = asyncio.get_running_loop().create_task(self._call(head, start, message_bytes))

    async def _call(self, head: pb.DirectCall, start: int, size: int) -> None:
        """Makes one call, whose message begins at `start`, and answers it."""
        is_read = is_answered = False

        async def receive(route: Route) -> Received:
            nonlocal is_read
            raw = await self._message(start, size)
            is_read = True
            return Received(read_message(route.request_type, raw, self._server.limits), size)

        async def send(response: Response) -> Sent[None]:
            nonlocal is_answered
            assert isinstance(response, Message)  # streams are not answered here
            raw = response.SerializeToString()
            is_answered = True
            # At once: what is noted about the call afterwards is nothing that its caller has to wait for.
            await self._send(b"", raw)
            return Sent(None, len(raw))

        refused: pb.DirectAnswer | None = None
        try:
            route = self._endpoint.routes.get(head.method)
            if route is None or route.streams:
                refused = _unknown(head.method)
            else:
                await self._endpoint.call(_arrival(head), receive, send=send)
        except RecollectError as error:
            refused = _refusal(error)
        if not is_read and self._filled >= start + size:
            self._consume(start + size)
            is_read = True
        if refused is not None and not is_answered:
            await self._send(refused.SerializeToString(), b"")
        self.task = None
        if not is_read or self._server.is_stopping:  # what is left of the message would be taken for a call
            self._transport.close()
        elif self._filled:
            self._begin()

    async def _message(self, start: int, size: int) -> bytes:
        """The message of a call, when all of it is there."""
        if self._filled >= start + size:
            raw = bytes(self._view[start : start + size])
            self._consume(start + size)
            return raw
        bytes_max = self._server.limits.message_bytes_max + ENVELOPE_BYTES
        if size > bytes_max:
            raise MessageTooLargeError(f"the request is larger than max ({size:,} vs. {bytes_max:,} bytes)")
        message = bytearray(size)
        there = self._filled - start
        message[:there] = self._view[start : self._filled]
        self._rest = memoryview(message)[there:]
        self._filled = 0
        self._arrived = asyncio.get_running_loop().create_future()
        self._transport.resume_reading()
        try:
            with self._server.patience.wait():
                await self._arrived
        except TimeoutError:
            raise DeadlineExceededError(
                f"the request did not arrive within {self._server.limits.receive_s_max} s"
            ) from None
        finally:
            self._arrived = None
        return bytes(message)

    def _consume(self, end: int) -> None:
        """Forgets what is read."""
        rest = self._filled - end
        if rest:
            self._buffer[:rest] = self._buffer[end : self._filled]
        if self._filled == BUFFER_BYTES:
            self._transport.resume_reading()
        self._filled = rest

    async def _send(self, head: bytes, message: bytes) -> None:
        self._transport.write(b"".join((PREFIX.pack(MARK, len(head), len(message)), head, message)))
        if self._drained is not None:
            try:
                with self._server.patience.wait():
                    await self._drained
            except TimeoutError:  # who does not read makes the server hold the answer: not for ever
                self._transport.abort()


def _unknown(method: str) -> pb.DirectAnswer:
    return pb.DirectAnswer(
        status=grpc.StatusCode.UNIMPLEMENTED.name, message=f"{method} is not a call that is answered here"
    )


def _refusal(error: RecollectError) -> pb.DirectAnswer:
    return pb.DirectAnswer(status=status_of(error).name, message=error.message, error=detail_of(error))


def _arrival(head: pb.DirectCall) -> Arrival:
    left_s = head.timeout_s if head.HasField("timeout_s") else math.inf
    return Arrival(
        path=head.method,
        credential=head.credential or None,
        transport="direct",
        source="unix",
        deadline_s=time.monotonic() + left_s if left_s <= DEADLINE_S_MAX else None,
        traceparent=head.traceparent,
    )
