"""Calls without gRPC while callers hang up, do not read, or the server ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from recollect.v1 import memory_pb2 as pb
from recollect_server.domain.limits import Limits
from recollect_server.rpc.call import Arrival
from recollect_server.rpc.direct import DirectServer
from recollect_server.rpc.endpoint import Endpoint, Received, Response, Route, Sent
from tests.clients import path_of
from tests.direct_frames import GREETING, SUFFIX, call_frame

INFO = path_of("GetServerInfo")
PATIENCE_S = 20.0


class Slow:
    """An endpoint whose calls are answered when a test says so, with as much as it says."""

    def __init__(self) -> None:
        self.routes = {INFO: SimpleNamespace(streams=False, request_type=pb.GetServerInfoRequest)}
        self.began, self.may_end, self.cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.version = "1"
        self.arrivals: list[Arrival] = []

    async def call(
        self,
        arrival: Arrival,
        receive: Callable[[Route], Awaitable[Received]],
        *,
        send: Callable[[Response], Awaitable[Sent[None]]],
    ) -> None:
        """See `Endpoint.call`."""
        self.arrivals.append(arrival)
        await receive(cast("Route", self.routes[arrival.path]))
        self.began.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        await send(pb.GetServerInfoResponse(version=self.version))


@pytest.fixture
def endpoint() -> Slow:
    return Slow()


@pytest.fixture
async def server(endpoint: Slow, tmp_path: Path) -> AsyncIterator[DirectServer]:
    """One that has little patience."""
    serving = DirectServer(
        cast("Endpoint", endpoint), f"{tmp_path}/s", mode=0o600, limits=Limits(receive_s_max=1)
    )
    await serving.start()
    yield serving
    await serving.stop(grace_s=0)


class Caller:
    """A connection that has been let in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def answer(self) -> tuple[pb.DirectAnswer, bytes]:
        """The next one."""
        async with asyncio.timeout(PATIENCE_S):
            prefix = await self.reader.readexactly(12)
            head, size = (int.from_bytes(prefix[at : at + 4], "little") for at in (4, 8))
            return (
                pb.DirectAnswer.FromString(await self.reader.readexactly(head)),
                await self.reader.readexactly(size),
            )


Connect = Callable[[], Awaitable[Caller]]


@pytest.fixture
async def connect(server: DirectServer, tmp_path: Path) -> AsyncIterator[Connect]:
    """Makes callers, who leave when the test is over."""
    del server  # is there
    callers: list[Caller] = []

    async def one() -> Caller:
        caller = Caller(*await asyncio.open_unix_connection(f"{tmp_path}/s{SUFFIX}"))
        callers.append(caller)
        assert await caller.reader.readexactly(len(GREETING)) == GREETING
        return caller

    yield one
    for caller in callers:
        caller.writer.transport.abort()


async def happens(event: asyncio.Event) -> None:
    """Waits for it."""
    async with asyncio.timeout(PATIENCE_S):
        await event.wait()


async def test_who_hangs_up_gives_his_call_up(endpoint: Slow, connect: Connect) -> None:
    """The device works for callers that have left."""
    caller = await connect()
    caller.writer.write(call_frame(INFO, b""))
    await happens(endpoint.began)
    caller.writer.close()
    await happens(endpoint.cancelled)


@pytest.mark.parametrize(
    ("timeout_s", "least_s", "most_s"), [(60.0, 50.0, 60.0), (-5.0, -10.0, 0.0), (None, None, None)]
)
async def test_what_a_head_says(
    endpoint: Slow, connect: Connect, timeout_s: float | None, least_s: float | None, most_s: float | None
) -> None:
    """A call loses its deadline, its key or its trace on the way, or gets a deadline that nobody set."""
    head = pb.DirectCall(method=INFO, credential="rk_1", traceparent="00-1", timeout_s=timeout_s)
    raw = head.SerializeToString()
    caller = await connect()
    now_s = asyncio.get_running_loop().time()
    caller.writer.write(GREETING + len(raw).to_bytes(4, "little") + bytes(4) + raw)
    await happens(endpoint.began)
    (arrival,) = endpoint.arrivals
    assert (arrival.path, arrival.credential, arrival.traceparent) == (INFO, "rk_1", "00-1")
    assert (arrival.transport, arrival.source) == ("direct", "unix")
    if least_s is None or most_s is None:
        assert arrival.deadline_s is None
    else:
        assert arrival.deadline_s is not None
        assert least_s < arrival.deadline_s - now_s < most_s + PATIENCE_S


@pytest.mark.parametrize("timeout_s", [float("nan"), float("inf"), 1e300])
async def test_a_deadline_that_is_none(endpoint: Slow, connect: Connect, timeout_s: float) -> None:
    """A number that is no time ends a call, or the server."""
    caller = await connect()
    endpoint.may_end.set()
    caller.writer.write(call_frame(INFO, b"", timeout_s=timeout_s))
    assert (await caller.answer())[0].status == ""
    assert endpoint.arrivals[0].deadline_s is None


async def test_the_server_ends_when_calls_in_flight_have(
    server: DirectServer, endpoint: Slow, connect: Connect, tmp_path: Path
) -> None:
    """A call that the server had begun with is cut off while there is time, or others keep it from ending."""
    idle, caller = await connect(), await connect()
    caller.writer.write(call_frame(INFO, b""))
    await happens(endpoint.began)
    stopping = asyncio.create_task(server.stop(grace_s=PATIENCE_S))
    assert await idle.reader.read() == b""  # closed
    with pytest.raises(OSError, match=r"."):
        await connect()  # nobody else is let in
    assert not stopping.done()
    endpoint.may_end.set()
    head, message = await caller.answer()
    assert (head.status, pb.GetServerInfoResponse.FromString(message).version) == ("", "1")
    async with asyncio.timeout(PATIENCE_S):
        await stopping
    assert await caller.reader.read() == b""
    assert not Path(f"{tmp_path}/s{SUFFIX}").exists()


@pytest.mark.parametrize("size", [*range(150_000, 450_000, 40_000), 8_000_000])
async def test_the_end_of_an_answer_is_not_cut_off(
    size: int, server: DirectServer, endpoint: Slow, connect: Connect
) -> None:
    """A server that ends while a caller reads loses what has not left its buffers, much or little."""
    endpoint.version = "v" * size
    endpoint.may_end.set()
    caller = await connect()
    transport = cast("asyncio.Transport", caller.writer.transport)  # it reads too
    transport.pause_reading()
    caller.writer.write(call_frame(INFO, b""))
    await happens(endpoint.began)
    stopping = asyncio.create_task(server.stop(grace_s=PATIENCE_S))
    await asyncio.sleep(0.1)
    transport.resume_reading()
    _, message = await caller.answer()
    assert pb.GetServerInfoResponse.FromString(message).version == endpoint.version
    async with asyncio.timeout(PATIENCE_S):
        await stopping


async def test_the_socket_of_the_next_server_stays(
    server: DirectServer, endpoint: Slow, tmp_path: Path
) -> None:
    """A server that ends takes the socket of the one that has followed it: its callers take gRPC."""
    path = Path(f"{tmp_path}/s{SUFFIX}")
    following = DirectServer(cast("Endpoint", endpoint), f"{tmp_path}/s", mode=0o600, limits=Limits())
    await following.start()
    inode = path.stat().st_ino
    await server.stop(grace_s=1)
    assert path.stat().st_ino == inode
    await following.stop(grace_s=1)
    assert not path.exists()


async def test_the_server_does_not_wait_longer_than_its_grace(
    server: DirectServer, endpoint: Slow, connect: Connect
) -> None:
    """One slow call keeps a server from ending."""
    caller = await connect()
    caller.writer.write(call_frame(INFO, b""))
    await happens(endpoint.began)
    await server.stop(grace_s=0.05)
    await happens(endpoint.cancelled)
    assert await caller.reader.read() == b""


async def test_an_answer_that_nobody_takes_is_not_held_for_ever(endpoint: Slow, connect: Connect) -> None:
    """Callers that do not read fill the server's memory with answers."""
    endpoint.version = "v" * 8_000_000
    endpoint.may_end.set()
    caller = await connect()
    transport = cast("asyncio.Transport", caller.writer.transport)  # it reads too
    transport.pause_reading()
    caller.writer.write(call_frame(INFO, b""))
    await asyncio.sleep(2)  # twice its patience
    transport.resume_reading()
    with pytest.raises(asyncio.IncompleteReadError):
        await caller.answer()


async def test_a_large_answer_arrives_whole(endpoint: Slow, connect: Connect) -> None:
    """An answer that does not fit into the system's buffers is cut off, or mixed with the next one."""
    endpoint.version = "v" * 8_000_000
    endpoint.may_end.set()
    caller = await connect()
    caller.writer.write(call_frame(INFO, b"") * 2)
    for _ in range(2):
        _, message = await caller.answer()
        assert pb.GetServerInfoResponse.FromString(message).version == endpoint.version
