"""The admin API on sockets: uvicorn, in the event loop of the server."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from recollect_server.domain.listen import ListenAddress

CONNECTIONS_MAX = 256
KEEP_ALIVE_S = 15
LOOK_S = 0.01


class _Uvicorn(uvicorn.Server):
    """Leaves signals alone: they are the process's, which has more than this to stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves an application until it is stopped.

    Args:
        app: What to serve.
        listen: Where.
        ssl_context: For TLS; None: without.
        grace_s: For requests under way when it stops.
    """

    def __init__(
        self,
        app: FastAPI,
        listen: list[ListenAddress],
        *,
        ssl_context: ssl.SSLContext | None = None,
        grace_s: float = 5.0,
    ) -> None:
        self._app = app
        self._listen = listen
        self._ssl_context = ssl_context
        self._grace_s = grace_s
        self._servers: list[_Uvicorn] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> list[str]:
        """Binds and serves.

        Returns:
            Base URLs, with the port that was chosen where 0 was asked for.

        Raises:
            OSError: An address cannot be bound.
        """
        sockets = [_bound(address) for address in self._listen]
        for bound in sockets:
            server = _Uvicorn(self._config())
            self._servers.append(server)
            self._tasks.append(asyncio.create_task(server.serve(sockets=[bound])))
        while not all(server.started for server in self._servers):
            await asyncio.sleep(LOOK_S)
        scheme = "http" if self._ssl_context is None else "https"
        return [_url(scheme, bound) for bound in sockets]

    async def stop(self) -> None:
        """Ends requests under way, or gives them up after the grace."""
        for server in self._servers:
            server.should_exit = True
        await asyncio.gather(*self._tasks)

    def _config(self) -> uvicorn.Config:
        config = uvicorn.Config(
            self._app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # The audit log names who connected: a header with another address is anybody's to send.
            proxy_headers=False,
            http="h11",
            ws="none",
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(self._grace_s)),
        )
        if self._ssl_context is not None:
            context = self._ssl_context
            config.ssl_context_factory = lambda _config, _default: context
        return config


def _bound(address: ListenAddress) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        bound = socket.create_server((address.host, address.port), family=family, backlog=CONNECTIONS_MAX)
    except OSError as refused:
        raise OSError(
            f"cannot listen on {address.host}:{address.port} for the admin API: {refused}"
        ) from refused
    # asyncio does this for sockets that say that they are TCP's, which those of `create_server` do not.
    # Without it the second packet of an answer waits 40 ms for the acknowledgement of the first.
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return bound


def _url(scheme: str, bound: socket.socket) -> str:
    host, port = bound.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
