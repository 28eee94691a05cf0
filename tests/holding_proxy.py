"""A TCP proxy that lets some of what a server answers pass, and then holds it: so a call is under way."""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time

from tests.closing import Closing

CHUNK_BYTES = 65_536

BUFFER_BYTES = 65_536
"""What it has of a server's answers and has not read: the rest is the server's to send."""

SLOW_S = 0.3

WINDOW_UPDATE = bytes([0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1])
"""Of HTTP/2: the client has room for one byte more, on all streams."""


class HoldingProxy(Closing):
    """Between one client and a server on this machine.

    Args:
        port: Of the server.
        hold_after_bytes: Of its answers, on all connections together.
        tail_after_bytes: Where what it lets pass, once released, stops twice for `SLOW_S`. In between the
            server is told that something was read: clients do that as they read, at times of their own.

    Attributes:
        held: Set once something is held.
    """

    def __init__(self, port: int, *, hold_after_bytes: int, tail_after_bytes: int = sys.maxsize) -> None:
        self._port = port
        self._left = hold_after_bytes
        self._left_to_tail = tail_after_bytes
        self._released = threading.Event()
        self.held = threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Where a client connects."""
        return f"grpc://127.0.0.1:{self._listener.getsockname()[1]}"

    def release(self) -> None:
        """Lets everything pass from now on."""
        self._released.set()

    def cut(self) -> None:
        """Ends the connections that there are; new ones are let through."""
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self.release()

    def close(self) -> None:
        """Ends everything."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.socket()
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
                server.connect(("127.0.0.1", self._port))
                self._sockets += [client, server]
                for source, to, holds in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass, args=(source, to, holds), daemon=True).start()

    def _pass(self, source: socket.socket, to: socket.socket, holds: bool) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(CHUNK_BYTES):
                if holds:
                    self._hold(source, len(part))
                to.sendall(part)
        # What the other side still sends has to arrive though it takes nothing any more.
        with contextlib.suppress(OSError):
            to.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            source.shutdown(socket.SHUT_RD)

    def _hold(self, server: socket.socket, size: int) -> None:
        self._left -= size
        if self._left < 0 and not self._released.is_set():
            self.held.set()
            self._released.wait()
        before, self._left_to_tail = self._left_to_tail, self._left_to_tail - size
        if self._left_to_tail < 0 <= before:
            time.sleep(SLOW_S)
            server.sendall(WINDOW_UPDATE)
            time.sleep(SLOW_S)
