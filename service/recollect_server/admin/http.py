"""The admin API on sockets: uvicorn, in the event loop of the server."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from recollect_server.domain.listen import ListenAddress

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 256
KEEP_ALIVE_S = 15
HEAD_S = 10
"""For the head of a request, once one is due: who sends none takes the place of a probe."""
UNWIND_S = 1.0
"""For requests that were given up, to come to their end."""
LOOK_S = 0.01


class _Uvicorn(uvicorn.Server):
    """Leaves signals alone: they are the process's, which has more than this to stop."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Protocol(H11Protocol):
    """Closes connections on which no request begins: uvicorn waits for a first one for ever."""

    _head_due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        super().connection_made(transport)
        self._expect_head(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_head(None)
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # uvicorn closes what stays silent; who sends half a head stops its clock.
        self._expect_head(KEEP_ALIVE_S + HEAD_S)

    def _expect_head(self, within_s: float | None) -> None:
        if self._head_due is not None:
            self._head_due.cancel()
        self._head_due = (
            None if within_s is None else self.loop.call_later(within_s, self._close_if_idle, self.cycle)
        )

    def _close_if_idle(self, last: RequestResponseCycle | None) -> None:
        is_idle = last is None or last.response_complete
        if is_idle and self.cycle is last:
            self.transport.close()


class HttpServer:
    """Serves an application until it is stopped.

    Args:
        app: What to serve.
        listen: Where.
        ssl_context: For TLS; None: without.
    """

    def __init__(
        self,
        app: FastAPI,
        listen: list[ListenAddress],
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._app = app
        self._listen = listen
        self._ssl_context = ssl_context
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

    async def stop(self, *, grace_s: float) -> None:
        """Takes no new requests, and ends when those under way have, or after the grace.

        Args:
            grace_s: At least what it takes to end without a request is given.
        """
        for server in self._servers:
            server.should_exit = True
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=max(grace_s, UNWIND_S))
            if late:
                await self._give_up()
        await asyncio.gather(*self._tasks)

    async def _give_up(self) -> None:
        """Closes what is open. Not left to uvicorn, which calls each such request a defect."""
        requests = [task for server in self._servers for task in server.server_state.tasks]
        log.info("gave up %d requests under way: the grace is over", len(requests))
        for server in self._servers:
            for connection in list(server.server_state.connections):
                connection.transport.abort()
        await asyncio.sleep(0)  # the requests are told that their caller is gone
        for request in requests:
            request.cancel()
        if requests:
            await asyncio.wait(requests, timeout=UNWIND_S)
        for server in self._servers:
            server.force_exit = True

    def _config(self) -> uvicorn.Config:
        config = uvicorn.Config(
            self._app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # The audit log names who connected: a header with another address is anybody's to send.
            proxy_headers=False,
            http=_Protocol,
            ws="none",
            limit_concurrency=CONNECTIONS_MAX,
            timeout_keep_alive=KEEP_ALIVE_S,
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
