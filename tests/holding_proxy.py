"""A TCP proxy that lets some of what a server answers pass, and then holds it: so a call is under way."""

from __future__ import annotations

import contextlib
import socket
import threading

from tests.closing import Closing

CHUNK_BYTES = 65_536


class HoldingProxy(Closing):
    """Between one client and a server on this machine.

    Args:
        port: Of the server.
        hold_after_bytes: Of its answers, on all connections together.

    Attributes:
        held: Set once something is held.
    """

    def __init__(self, port: int, *, hold_after_bytes: int) -> None:
        self._port = port
        self._left = hold_after_bytes
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
                server = socket.create_connection(("127.0.0.1", self._port))
                self._sockets += [client, server]
                for source, to, holds in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass, args=(source, to, holds), daemon=True).start()

    def _pass(self, source: socket.socket, to: socket.socket, holds: bool) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(CHUNK_BYTES):
                if holds:
                    self._left -= len(part)
                    if self._left < 0 and not self._released.is_set():
                        self.held.set()
                        self._released.wait()
                to.sendall(part)
        for each in (source, to):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
