"""A unix socket beside gRPC's, where callers are handed the descriptors of their regions."""

from __future__ import annotations

import asyncio
import logging
import socket

from recollect_server.rpc.regions import ID_BYTES, Regions
from recollect_server.rpc.side_socket import SideSocket

log = logging.getLogger(__name__)

SUFFIX = ".region"
"""After the path of gRPC's socket. Clients know it too."""

ASK_S = 5.0
"""Who connects has so long to say which region he wants."""

CONNECTIONS_MAX = 256


class HandOver:
    """Serves one socket. A region lives as long as the connection at which it was handed over.

    Args:
        regions: Of the server.
        path: Of gRPC's socket.
        mode: Who may connect.
    """

    def __init__(self, regions: Regions, path: str, *, mode: int) -> None:
        self._regions = regions
        self._socket = SideSocket(path, SUFFIX, mode=mode, purpose="no memory is shared")
        self._connections: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Binds and serves. Without it callers send and get messages as over a network."""
        self._listener = self._socket.listen()
        if self._listener is not None:
            self._accepting = asyncio.create_task(self._accept(self._listener))

    async def stop(self) -> None:
        """Closes the socket and all regions."""
        if self._accepting is None or self._listener is None:
            return
        tasks = [self._accepting, *self._connections]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._socket.remove()
        self._listener.close()
        self._accepting = self._listener = None

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:  # too many open files: those who have some go on
                log.warning("a connection for a region was not accepted: %s", error)
                await asyncio.sleep(1)
                continue
            if len(self._connections) >= CONNECTIONS_MAX:
                connection.close()
                continue
            task = asyncio.create_task(self._serve(connection))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _serve(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with connection:
            connection.setblocking(False)
            try:
                async with asyncio.timeout(ASK_S):
                    asked = await _received(connection, ID_BYTES)
            except (TimeoutError, OSError):
                return
            region = self._regions.claim(asked)
            if region is None:
                return
            try:
                socket.send_fds(connection, [b"\0"], [region.descriptor])
                self._regions.handed_over(region)
                await loop.sock_recv(connection, 1)  # nothing comes, until it is closed
            except OSError:
                pass
            finally:
                self._regions.close(region)


async def _received(connection: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    taken = b""
    while len(taken) < size:
        more = await loop.sock_recv(connection, size - len(taken))
        if not more:
            break
        taken += more
    return taken
