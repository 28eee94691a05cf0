"""The same calls without gRPC, in an event loop."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

from google.protobuf.message import Message

from recollect._forks import renewed_in_child
from recollect._frames import (
    CONNECTIONS_MAX,
    GREETING_S,
    MARK,
    PAUSE_S,
    PREFIX,
    dialled,
    frame,
    greeting_s,
    in_vain_s,
    is_quiet,
    late,
    lost,
    refusal,
    sizes,
    socket_of,
)
from recollect._impatience import Impatience
from recollect.errors import RecollectError


class AsyncDirect:
    """Connections of one client, each used by one call at a time. Belongs to an event loop.

    Args:
        path: Of gRPC's socket; None: the server is not reached by one, and every call takes gRPC.
        url: Of the server, for errors.
        token: An API key, or None.
    """

    def __init__(self, path: str | None, url: str, token: str | None) -> None:
        self._address = socket_of(path)
        self._url = url
        self._token = token or ""
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._opening = 0
        self._not_before_s = 0.0
        self._impatience = Impatience(GREETING_S)
        self._is_closed = False
        renewed_in_child(self)

    async def call(
        self,
        method: str,
        request: Message,
        *,
        left_s: Callable[[], float | None],
        headers: tuple[tuple[str, str], ...] = (),
    ) -> bytes | None:
        """See `Direct.call`."""
        connection = await self._take(left_s)
        if connection is None:
            return None
        try:
            raw = request.SerializeToString()
            sent = frame(method, raw, token=self._token, timeout_s=left_s(), headers=headers)
            async with asyncio.timeout(left_s()):
                refused, answer = await connection.exchange(sent)
        except TimeoutError:
            self._forget(connection)
            raise late(self._url) from None
        except OSError as cause:
            self._forget(connection)
            raise lost(self._url, cause) from cause
        except BaseException:  # the answer may still come, and must not be taken for that of another call
            self._forget(connection)
            raise
        self._idle.append(connection)
        try:
            if refused is not None:
                raise refused
        finally:
            del refused  # its traceback holds this frame: each would hold the other, and the caller's arrays
        return answer

    def close(self) -> None:
        """Closes all connections; calls in flight end with an error."""
        self._is_closed = True
        for connection in list(self._open):
            self._forget(connection)
        self._idle.clear()

    def forked(self) -> None:
        """In the child: what is open is the parent's."""
        for connection in self._open:
            connection.let_go()
        self._idle, self._open, self._opening = [], set(), 0

    async def _take(self, left_s: Callable[[], float | None]) -> _Connection | None:
        """One that no call uses; None where the server has none, or all are in use."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable():
                return connection
            self._forget(connection)
        under_way = len(self._open) + self._opening
        if self._address is None or self._is_closed or under_way >= CONNECTIONS_MAX:
            return None
        if time.monotonic() < self._not_before_s:
            return None
        wait_s = greeting_s(left_s())
        self._opening += 1
        try:
            connection = await _connected(self._address, wait_s=wait_s)
        except OSError as error:  # no such server, an older or a newer one, or one with too many callers
            if self._impatience.is_over(in_vain_s(error, wait_s)):
                self._not_before_s = time.monotonic() + PAUSE_S
            return None
        finally:
            self._opening -= 1
        self._impatience.was_wrong()
        self._opened(connection)
        return connection

    def _opened(self, connection: _Connection) -> None:
        self._open.add(connection)
        if self._is_closed:  # meanwhile
            self._forget(connection)

    def _forget(self, connection: _Connection) -> None:
        self._open.discard(connection)
        connection.close()


async def _connected(address: str, *, wait_s: float) -> _Connection:
    """A connection to a server that lets this client in.

    Raises:
        OSError: It does not.
    """
    loop = asyncio.get_running_loop()
    dialled_socket = dialled(address)
    _, connection = await loop.create_unix_connection(
        lambda: _Connection(dialled_socket), sock=dialled_socket
    )
    try:
        async with asyncio.timeout(wait_s):
            if await connection.greeting != MARK:
                raise ConnectionError("the server did not let this client in")
    except BaseException:
        connection.close()
        raise
    return connection


class _Connection(asyncio.Protocol):
    """One connection, on which there is one call at a time.

    Args:
        connected: Its socket.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected  # which the transport reads and writes; here it is only looked at
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self.greeting: asyncio.Future[bytes] = self._loop.create_future()
        self._answer: asyncio.Future[tuple[RecollectError | None, bytes]] | None = None
        self._is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.BaseProtocol`."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def is_usable(self) -> bool:
        """Whether the server has it open still, and this is its event loop."""
        is_here = not self._is_lost and self._loop is asyncio.get_running_loop()
        # The loop may not have run since the server closed it.
        return is_here and is_quiet(self._socket)

    async def exchange(self, sent: bytes) -> tuple[RecollectError | None, bytes]:
        """Sends a call; returns the error that the server answers, if it is one, and the message.

        Raises:
            OSError: The connection was lost.
            InternalError: What came is no answer.
        """
        if self._is_lost:
            raise ConnectionError("the server closed the connection")
        self._answer = self._loop.create_future()
        self._transport.write(sent)
        try:
            return await self._answer
        finally:
            self._answer = None

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if not self.greeting.done():
            self._received += data
            if len(self._received) >= len(MARK):
                self.greeting.set_result(bytes(self._received))
                self._received.clear()
            return
        if self._answer is None or self._answer.done():  # nobody asked
            self._transport.abort()
            return
        self._received += data
        if len(self._received) < PREFIX.size:
            return
        try:
            head_bytes, message_bytes = sizes(self._received)
        except RecollectError as error:
            self._answer.set_exception(error)
            return
        start = PREFIX.size + head_bytes
        end = start + message_bytes
        if len(self._received) < end:
            return
        head, message = bytes(self._received[PREFIX.size : start]), bytes(self._received[start:end])
        self._received.clear()
        self._answer.set_result((refusal(head), message))

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.BaseProtocol`."""
        self._is_lost = True
        if not self.greeting.done():
            self.greeting.set_result(b"")
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the server closed the connection"))

    def let_go(self) -> None:
        """Closes this process's end alone: another one goes on with the connection."""
        self._socket.close()

    def close(self) -> None:
        """Closes it; a call that is under way ends with an error."""
        if self._loop is asyncio.get_running_loop():  # not of a loop that is closed
            self._transport.abort()
