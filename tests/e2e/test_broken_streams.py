"""Answers in chunks that do not come to their end, or only just: nothing is lost, nothing stays held."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import recollect
from tests.clients import blocking_client
from tests.contract.memories import Array, CheckedMemory, Memories
from tests.e2e.test_server import PATIENCE_S, wait_for
from tests.holding_proxy import HoldingProxy
from tests.installation import Installation
from tests.server_process import ServerProcess

pytestmark = pytest.mark.e2e

STREAMS = ["a", "b", "c"]
TOP_K, TOKENS, DIM = 40, 700, 32
ANSWER_BYTES = len(STREAMS) * TOKENS * TOP_K * (8 + 4 * 3 * DIM)
"""33 MB, in as many chunks: more than sockets and gRPC keep on the way."""

PASSED_BYTES = 3_000_000
TAIL_BYTES = 500_000
"""Of an answer: less than sockets keep on the way."""

Found = recollect.SearchResult[Array]


@dataclass
class World:
    """A server, a tenant that may have one such answer in flight, and a proxy that holds it on its way."""

    server: ServerProcess
    proxy: HoldingProxy
    token: str
    other_token: str
    memory: CheckedMemory

    def read(self, client: recollect.Client, *, timeout_s: float = PATIENCE_S) -> Found:
        """The whole answer, compared with the oracle."""
        q = self.memory.queries(len(STREAMS), TOKENS)
        ns = client.namespace(self.memory.ns.name)
        found = ns.search(0, q, top_k=TOP_K, streams=STREAMS, include=["keys", "values"], timeout_s=timeout_s)
        self.memory.oracle.check_search(0, q, found, streams=STREAMS)
        return found

    def reads(self) -> str:
        """Past the proxy: "", or the reason why not."""
        try:
            with recollect.connect(self.server.tcp_url, token=self.token, retries=0) as client:
                self.read(client)
        except recollect.RecollectError as refused:
            return refused.reason
        return ""


@pytest.fixture
def limits() -> dict[str, int]:
    """The server's."""
    return {}


@pytest.fixture
def grace_s() -> int:
    """For calls in flight when the server is told to end."""
    return 60


@pytest.fixture
def tail_bytes() -> int:
    """At the end of an answer, which pass slowly (`HoldingProxy`)."""
    return TAIL_BYTES


@pytest.fixture
def world(tmp_path: Path, limits: dict[str, int], grace_s: int, tail_bytes: int) -> Iterator[World]:
    """Filled."""
    environment = {"RECOLLECT_DRAIN_GRACE_S": f"{grace_s}"}
    with (
        ServerProcess(data_dir=tmp_path, limits=limits, environment=environment) as server,
        Installation(server) as installation,
        HoldingProxy(
            server.port, hold_after_bytes=PASSED_BYTES, tail_after_bytes=ANSWER_BYTES - tail_bytes
        ) as proxy,
    ):
        token = installation.tenant("reader", bytes_in_flight_max=ANSWER_BYTES * 3 // 2)
        other_token = installation.tenant("other")
        with recollect.connect(server.tcp_url, token=token) as client:
            memories = Memories(client, np.random.default_rng(0))
            memory = memories(heads=1, capacity=60, key_dim=DIM, value_dim=2 * DIM, dtype="float32")
            memory.add(STREAMS, 70, lengths=[70, 35, 8])
            yield World(server, proxy, token, other_token, memory)


@pytest.fixture(params=["sync", "async"])
def reading(world: World, request: pytest.FixtureRequest) -> Iterator[Callable[..., Future[Found]]]:
    """Begins a read through the proxy, and returns when it is held in the middle."""

    def read(timeout_s: float, retries: int) -> Found:
        connect = blocking_client if request.param == "async" else recollect.connect
        with connect(world.proxy.url, token=world.token, retries=retries) as client:
            return world.read(client, timeout_s=timeout_s)

    def begin(*, timeout_s: float = PATIENCE_S, retries: int = 0) -> Future[Found]:
        future = pool.submit(read, timeout_s, retries)
        wait_for(lambda: world.proxy.held.is_set() or future.done(), "the answer is on its way")
        assert not future.done(), future.result()
        return future

    with ThreadPoolExecutor(1) as pool:
        yield begin
        world.proxy.cut()


@pytest.mark.parametrize("limits", [{"receive_s_max": 2}])
def test_who_takes_no_part_is_given_up(world: World, reading: Callable[..., Future[Found]]) -> None:
    """Whoever stops reading has the server hold his answer for as long as he likes, or others wait."""
    world.reads()
    before = world.server.resident_bytes
    future = reading()
    with recollect.connect(world.server.tcp_url, token=world.other_token) as other:
        memory = Memories(other, np.random.default_rng(1))(capacity=60)
        memory.add(["x"], 20)
        memory.check_search(["x"])
    wait_for(lambda: not world.reads(), "the answer is given up and its bytes are counted out")
    wait_for(lambda: world.server.resident_bytes < before + ANSWER_BYTES // 3, "its memory is freed")
    assert not future.done()
    world.proxy.release()
    with pytest.raises(recollect.DeadlineExceededError, match="not taken within 2 s"):
        future.result(PATIENCE_S)
    assert "Traceback" not in world.server.log


def test_a_deadline_in_the_middle(world: World, reading: Callable[..., Future[Found]]) -> None:
    """A caller waits for the rest beyond his deadline, or the server holds it beyond that."""
    future = reading(timeout_s=5.0)
    assert world.reads() == "QUOTA_BYTES_IN_FLIGHT" or future.done()
    with pytest.raises(recollect.DeadlineExceededError):
        future.result(PATIENCE_S)
    wait_for(lambda: not world.reads(), "the bytes of the answer are counted out")
    assert "Traceback" not in world.server.log


def test_a_read_that_is_cancelled_in_the_middle(world: World) -> None:
    """What a cancelled task left unread stays counted, and its tenant can read nothing more."""

    async def cancel() -> None:
        async with recollect.connect_async(world.proxy.url, token=world.token) as client:
            ns = await client.namespace(world.memory.ns.name)
            q = world.memory.queries(len(STREAMS), TOKENS)
            task = asyncio.create_task(
                ns.search(0, q, top_k=TOP_K, streams=STREAMS, include=["keys", "values"])
            )
            assert await asyncio.to_thread(world.proxy.held.wait, PATIENCE_S)
            assert await asyncio.to_thread(world.reads) == "QUOTA_BYTES_IN_FLIGHT"
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(wait_for, lambda: not world.reads(), "the bytes are counted out")

    asyncio.run(cancel())
    assert "Traceback" not in world.server.log


def test_a_client_that_is_closed_in_the_middle(world: World) -> None:
    """A thread hangs in a read of a client that another one has closed, or gets half an answer."""
    with ThreadPoolExecutor(1) as pool:
        client = recollect.connect(world.proxy.url, token=world.token)
        future = pool.submit(world.read, client)
        assert world.proxy.held.wait(PATIENCE_S)
        client.close()
        with pytest.raises(recollect.ClosedError):
            future.result(PATIENCE_S)
    wait_for(lambda: not world.reads(), "the bytes are counted out")


def test_a_drain_in_the_middle(world: World, reading: Callable[..., Future[Found]]) -> None:
    """A server that is told to end cuts off an answer under way or its tail, or takes new calls meanwhile."""
    with recollect.connect(world.server.tcp_url, token=world.token, retries=0) as late:
        late.server_info()
        future = reading()
        world.server.terminate()
        wait_for(lambda: _is_refused(late), "new calls are refused")
    assert world.server.is_alive
    assert not future.done()
    world.proxy.release()
    assert future.result(PATIENCE_S).keys is not None  # the reader has compared it with the oracle
    assert world.server.wait() == 0
    assert "Traceback" not in world.server.log


@pytest.mark.parametrize("grace_s", [2])
@pytest.mark.parametrize("tail_bytes", [-ANSWER_BYTES])  # none
def test_a_drain_with_little_grace(world: World, reading: Callable[..., Future[Found]]) -> None:
    """A server waits for an answer to arrive until its own grace is over, and cuts off what was complete."""
    future = reading()
    world.server.terminate()
    world.proxy.release()
    assert future.result(PATIENCE_S).keys is not None
    assert world.server.wait() == 0


@pytest.mark.parametrize("grace_s", [1])
def test_a_drain_ends_though_nobody_reads(world: World, reading: Callable[..., Future[Found]]) -> None:
    """One caller who does not read keeps a server from ending, or ends it otherwise than in good order."""
    future = reading()
    world.server.terminate()
    assert world.server.wait() == 0
    assert not future.done()
    world.proxy.release()
    with pytest.raises(recollect.UnavailableError):
        future.result(PATIENCE_S)
    assert "Traceback" not in world.server.log
    assert "ended without callers who take nothing" in world.server.log  # for whom gRPC waits 20 s longer


def test_a_server_that_is_killed_in_the_middle(world: World, reading: Callable[..., Future[Found]]) -> None:
    """Of an answer that broke off a part is returned as if it were all, or nobody ever says that it did."""
    future = reading()
    world.server.kill()
    world.proxy.release()
    with pytest.raises(recollect.UnavailableError):
        future.result(PATIENCE_S)


def test_a_read_that_broke_off_is_repeated(world: World, reading: Callable[..., Future[Found]]) -> None:
    """A connection that broke is an error though a read may be repeated; or its first parts are mixed in."""
    future = reading(retries=3)
    # One answer at a time is what its tenant may have: the one that broke off must not count any more.
    world.proxy.cut()
    assert future.result(PATIENCE_S).keys is not None
    assert "Traceback" not in world.server.log


def _is_refused(client: recollect.Client) -> bool:
    with contextlib.suppress(recollect.UnavailableError):
        client.server_info(timeout_s=PATIENCE_S)
        time.sleep(0.01)
        return False
    return True
