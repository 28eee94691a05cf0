"""Calls to a server on this machine without gRPC, which costs more than a small call's own work."""

from __future__ import annotations

import contextlib
import socket
import threading
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

_BUFFER_BYTES = 64 * 1024
"""Most answers are no longer, and come at once."""


class Direct:
    """Connections of one client, each used by one call at a time. Threads may share it.

    Args:
        path: Of gRPC's socket; None: the server is not reached by one, and every call takes gRPC.
        url: Of the server, for errors.
        token: An API key, or None.
    """

    def __init__(self, path: str | None, url: str, token: str | None) -> None:
        self._address = socket_of(path)
        self._url = url
        self._token = token or ""
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._opening = 0
        self._not_before_s = 0.0
        self._impatience = Impatience(GREETING_S)
        self._is_closed = False
        renewed_in_child(self)

    def call(
        self,
        method: str,
        request: Message,
        *,
        left_s: Callable[[], float | None],
        headers: tuple[tuple[str, str], ...] = (),
    ) -> bytes | None:
        """Sends one request and waits for its answer.

        Args:
            method: Full path.
            request: Its message.
            left_s: Says how long the caller will wait from now on; None: for ever.
            headers: Of a trace.

        Returns:
            The answering message; None: nothing was sent, and gRPC has to.

        Raises:
            RecollectError: What the server answered, or that it did not.
        """
        connection = self._take(left_s)
        if connection is None:
            return None
        try:
            raw = request.SerializeToString()
            sent = frame(method, raw, token=self._token, timeout_s=left_s(), headers=headers)
            refused, answer = connection.exchange(sent, left_s)
        except TimeoutError:
            self._give_up(connection)
            raise late(self._url) from None
        except OSError as cause:
            self._give_up(connection)
            # What a closed client's calls end with is said by who knows that it was closed.
            raise lost(self._url, cause) from cause
        except BaseException:  # the answer may still come, and must not be taken for that of another call
            self._give_up(connection)
            raise
        self._give_back(connection)
        try:
            if refused is not None:
                raise refused
        finally:
            del refused  # its traceback holds this frame: each would hold the other, and the caller's arrays
        return answer

    def close(self) -> None:
        """Closes all connections; calls in flight end with an error."""
        with self._lock:
            self._is_closed = True
            for connection in self._open:
                connection.shut_down()
            while self._idle:
                self._forget(self._idle.pop())

    def _take(self, left_s: Callable[[], float | None]) -> _Connection | None:
        """One that no call uses; None where the server has none, or all are in use."""
        if self._address is None:
            return None
        with self._lock:
            while self._idle:
                connection = self._idle.pop()
                if connection.is_usable():
                    return connection
                self._forget(connection)
            under_way = len(self._open) + self._opening
            if self._is_closed or under_way >= CONNECTIONS_MAX or time.monotonic() < self._not_before_s:
                return None
            wait_s = greeting_s(left_s())
            self._opening += 1
        opened: _Connection | None = None
        try:
            opened = _Connection(self._address, wait_s=wait_s)
            self._impatience.was_wrong()
        except OSError as error:  # no such server, an older or a newer one, or one with too many callers
            if self._impatience.is_over(in_vain_s(error, wait_s)):
                self._not_before_s = time.monotonic() + PAUSE_S
        finally:  # whatever interrupts a thread
            self._count(opened)
        return opened

    def _count(self, opened: _Connection | None) -> None:
        """One that was being opened is open, or is not to be."""
        with self._lock:
            self._opening -= 1
            if opened is not None:
                self._open.add(opened)
                if self._is_closed:  # meanwhile
                    opened.shut_down()

    def forked(self) -> None:
        """In the child: what is open is the parent's."""
        self._lock = threading.Lock()  # another thread may have had it
        for connection in self._open:
            connection.close()  # this process's end
        self._idle, self._open, self._opening = [], set(), 0

    def _give_back(self, connection: _Connection) -> None:
        with self._lock:
            if self._is_closed:
                self._forget(connection)
            else:
                self._idle.append(connection)

    def _give_up(self, connection: _Connection) -> None:
        with self._lock:
            self._forget(connection)

    def _forget(self, connection: _Connection) -> None:
        """With the lock."""
        self._open.discard(connection)
        connection.close()


class _Connection:
    """One connection, on which there is one call at a time.

    Args:
        address: Path of its socket.
        wait_s: For the server to let this client in.

    Raises:
        OSError: The server lets nobody in there.
    """

    def __init__(self, address: str, *, wait_s: float) -> None:
        self._socket = dialled(address)
        try:
            self._socket.settimeout(wait_s)
            if self._socket.recv(len(MARK)) != MARK:
                raise ConnectionError("the server did not let this client in")
        except BaseException:
            self._socket.close()
            raise
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)

    def is_usable(self) -> bool:
        """Whether the server has it open still."""
        self._socket.setblocking(False)
        return is_quiet(self._socket)

    def exchange(
        self, sent: bytes, left_s: Callable[[], float | None]
    ) -> tuple[RecollectError | None, bytes]:
        """Sends a call; returns the error that the server answers, if it is one, and the message.

        Raises:
            OSError: The connection was lost; a `TimeoutError`: no answer in time.
            InternalError: What came is no answer.
        """
        self._wait_for(left_s())
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(sent)
            # Else the server would not read all of it: it has said why.
        filled = 0
        while filled < PREFIX.size:
            filled += self._receive(self._view[filled:], left_s)
        head_bytes, message_bytes = sizes(self._buffer)
        start, end = PREFIX.size + head_bytes, PREFIX.size + head_bytes + message_bytes
        if end <= _BUFFER_BYTES:
            whole = self._view
        else:
            whole = memoryview(bytearray(end))
            whole[:filled] = self._view[:filled]
        while filled < end:
            filled += self._receive(whole[filled:end], left_s)
        return refusal(bytes(whole[PREFIX.size : start])), bytes(whole[start:end])

    def _receive(self, into: memoryview, left_s: Callable[[], float | None]) -> int:
        self._wait_for(left_s())
        size = self._socket.recv_into(into)
        if size == 0:
            raise ConnectionError("the server closed the connection")
        return size

    def _wait_for(self, timeout_s: float | None) -> None:
        # 0 would mean not to wait, and to fail with another error.
        self._socket.settimeout(None if timeout_s is None else max(timeout_s, 1e-6))

    def shut_down(self) -> None:
        """Ends what is under way, from another thread."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes it."""
        self._socket.close()
