"""`HttpServer` on real sockets: callers who send nothing, or a part, while it serves and when it stops."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from recollect_server.admin import http
from recollect_server.admin.http import HttpServer
from recollect_server.admin.services import Check
from recollect_server.bootstrap import build_server
from recollect_server.domain.listen import ListenAddress
from recollect_server.settings import AdminSettings, Settings
from tests.admin_world import World, world

PATIENCE_S = 60.0
PROBE = b"GET /livez HTTP/1.1\r\nHost: h\r\n\r\n"


@pytest.fixture
async def made() -> AsyncIterator[World]:
    """What is served."""
    async with world() as each:
        yield each


@pytest.fixture
async def server(made: World) -> AsyncIterator[HttpServer]:
    """It is started by who connects, and stopped."""
    running = HttpServer(made.app, [ListenAddress(host="127.0.0.1", port=0)])
    yield running
    await running.stop(grace_s=0)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets seconds for the head of a request."""
    monkeypatch.setattr(http, "HEAD_S", 0.05)
    monkeypatch.setattr(http, "KEEP_ALIVE_S", 0.5)


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connected(server: HttpServer) -> Connection:
    """A connection to a server that starts with it."""
    (url,) = await server.start()
    return await asyncio.open_connection("127.0.0.1", urlsplit(url).port)


async def rest_of(connection: Connection) -> bytes:
    """What comes until the server closes."""
    async with asyncio.timeout(PATIENCE_S):
        try:
            return await connection[0].read()
        except ConnectionResetError:
            return b""
        finally:
            connection[1].close()


@pytest.mark.parametrize("sent", [b"", PROBE[:20]])
async def test_who_sends_no_request_loses_the_connection(
    server: HttpServer, impatient: None, sent: bytes
) -> None:
    """Some hundred connections that say nothing take the probes away for as long as they stay open."""
    connection = await connected(server)
    connection[1].write(sent)
    assert await rest_of(connection) == b""


@pytest.mark.parametrize("sent", [b"", PROBE[:20]])
async def test_who_sends_no_second_request_loses_it_too(
    server: HttpServer, impatient: None, sent: bytes
) -> None:
    """One probe, and a part of another, keep the place of a connection for ever."""
    connection = await connected(server)
    connection[1].write(PROBE)
    assert (await connection[0].read(12)) == b"HTTP/1.1 200"
    connection[1].write(sent)
    assert b"HTTP/1.1" not in await rest_of(connection)


def post(made: World) -> bytes:
    """A request of the operator whose body does not come."""
    lines = [f"{name}: {value}" for name, value in made.headers("operator").items()]
    return "\r\n".join(
        ["POST /api/v1/tenants HTTP/1.1", "Host: h", "Content-Length: 9", *lines, "\r\n"]
    ).encode()


async def test_a_request_under_way_is_not_taken_for_silence(
    server: HttpServer, impatient: None, made: World
) -> None:
    """A request that takes longer than its head may is cut off."""
    connection = await connected(server)
    connection[1].write(post(made))
    await asyncio.sleep(10 * http.HEAD_S)
    connection[1].write(b"[1, 2, 3]")
    assert (await rest_of(connection)).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize("where", ["body", "application"])
async def test_what_outlasts_the_grace_is_no_defect(
    server: HttpServer,
    made: World,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    where: str,
) -> None:
    """One caller that hangs makes a clean end look like a defect in the log, with a traceback."""
    began = asyncio.Event()

    async def never() -> list[Check]:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(http, "UNWIND_S", 0.05)
    connection = await connected(server)
    if where == "body":
        connection[1].write(post(made))
        while not [task for each in server._servers for task in each.server_state.tasks]:
            await asyncio.sleep(0.01)
    else:
        made.app.state.services = dataclasses.replace(made.app.state.services, readiness=never)
        connection[1].write(PROBE.replace(b"livez", b"readyz"))
        await asyncio.wait_for(began.wait(), PATIENCE_S)
    with caplog.at_level(logging.INFO):
        await asyncio.wait_for(server.stop(grace_s=0), PATIENCE_S)
    assert await rest_of(connection) == b""
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []
    assert "gave up 1 requests under way: the grace is over" in caplog.messages
    assert made.telemetry.calls[-1].status == "499"


async def test_http_gets_what_is_left_of_the_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server takes longer to end than its supervisor was told."""
    graces: list[float] = []
    stop = HttpServer.stop

    async def noted(self: HttpServer, *, grace_s: float) -> None:
        graces.append(grace_s)
        await stop(self, grace_s=grace_s)

    monkeypatch.setattr(HttpServer, "stop", noted)
    anywhere = ["127.0.0.1:0"]
    for grace_s in (0, 600):
        admin = AdminSettings(listen=anywhere)
        settings = Settings(dev=True, device="cpu", listen=anywhere, admin=admin, drain_grace_s=grace_s)
        server = build_server(settings, on_drain=lambda: None)
        await server.start()
        await server.stop()
    none, rest = graces
    assert none == 0
    assert 5 < rest < 600
