"""Clients on the server's machine: large tensors in shared memory, and what happens when there is none."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import Message

import recollect
from recollect import _grpc_transport as transports
from recollect import _regions as regions
from recollect._url import parse_url
from recollect._work import ADD, Reply
from recollect.v1 import memory_pb2 as pb
from tests.clients import OPEN, blocking_client
from tests.e2e.shared_memory import STREAMS, TOKENS, TOP_K, filled, idle_of, pool_of, read
from tests.server_process import ServerProcess

UPLOAD_S = 0.3
PATIENCE_S = 30.0


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded."""
    return np.random.default_rng(0)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_large_tensors_go_through_shared_memory(rng: np.random.Generator, asynchronous: bool) -> None:
    """They pass the socket although client and server share a machine, or arrive wrong."""
    with ServerProcess() as server:
        client = blocking_client(server.unix_url) if asynchronous else recollect.connect(server.unix_url)
        with client as connected:
            memory = filled(connected, rng)
            read(memory)
            read(memory, streams=["b"])
            assert pool_of(connected)._count >= 1
        pool = pool_of(connected)
        assert (idle_of(pool), pool._count) == (0, 0)
        assert "Traceback" not in server.log


def test_a_client_uses_its_regions_again(rng: np.random.Generator) -> None:
    """Each call opens a region, until there may be no more."""
    with ServerProcess(limits={"regions_max": 3}) as server, recollect.connect(server.unix_url) as client:
        memory = filled(client, rng)
        for _ in range(6):
            read(memory)
            memory.add(STREAMS, 400)
        pool = pool_of(client)
        assert pool._count == idle_of(pool) <= 2
        assert pool._not_before_s == 0.0


def pages_of(process: int | str) -> int:
    """Bytes of memory that is shared with others, as far as a process has it mapped."""
    status = Path(f"/proc/{process}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("RssShmem:")]
    return int(line.split()[1]) * 1024


def test_regions_that_nobody_uses_take_no_memory(rng: np.random.Generator) -> None:
    """An idle client keeps as much memory of the server's as its largest answer took."""
    with ServerProcess() as server, recollect.connect(server.unix_url) as client:
        before = pages_of(server.process.pid), pages_of("self")
        memory = filled(client, rng)
        for _ in range(2):
            read(memory)
            end = time.monotonic() + PATIENCE_S
            while (pages_of(server.process.pid), pages_of("self")) != before:
                assert time.monotonic() < end, "the pages of regions are kept"
                time.sleep(0.05)
            assert pool_of(client)._count >= 1
        memory.add(STREAMS, 400)
        read(memory)


def test_threads_share_a_client_and_not_a_region(rng: np.random.Generator) -> None:
    """Answers of threads that call at the same time are mixed up."""
    with ServerProcess() as server, recollect.connect(server.unix_url) as client:
        memory = filled(client, rng)
        failed: list[BaseException] = []
        asked = [memory.queries(2, TOKENS) for _ in range(8)]

        def many(q: np.ndarray) -> None:
            try:
                for _ in range(3):
                    found = memory.ns.search(0, q, top_k=TOP_K, streams=STREAMS, include=["keys", "values"])
                    memory.oracle.check_search(0, q, found, streams=STREAMS)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=many, args=(q,)) for q in asked]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failed, failed[0]


@pytest.mark.parametrize(
    "limits", [{"regions_max": 1, "regions_of_tenant_max": 1}, {}], ids=["none left", "no socket"]
)
def test_without_shared_memory_calls_go_on(rng: np.random.Generator, limits: dict[str, int]) -> None:
    """A client that gets no region fails, or asks for one at each call."""
    with ServerProcess(limits=limits) as server, recollect.connect(server.unix_url) as first:
        if limits:
            filled(first, rng)  # takes the only one
        else:
            Path(f"{server.socket}{regions._SOCKET_SUFFIX}").unlink()
        with recollect.connect(server.unix_url) as client:
            memory = filled(client, rng)
            read(memory)
            assert pool_of(client)._count == 0
            assert pool_of(client)._not_before_s > 0


def test_a_server_that_gives_no_more_than_an_answer_takes(rng: np.random.Generator) -> None:
    """Room for larger answers is asked for, which the server has not: no memory is shared at all."""
    limits = {"stream_bytes_max": 10_000_000}  # 16 MiB would be next
    with ServerProcess(limits=limits) as server, recollect.connect(server.unix_url) as client:
        memory = filled(client, rng)
        read(memory)
        pool = pool_of(client)
        assert idle_of(pool) == pool._count
        assert any(region.memory.size > 8 * 1024 * 1024 for region in pool._idle)
        assert pool._not_before_s == 0.0


def test_cancelled_calls_leave_sharing_as_it_is(rng: np.random.Generator) -> None:
    """A task that is cancelled while it opens a region costs all others theirs for half a minute."""
    with ServerProcess() as server, recollect.connect(server.unix_url) as filler:
        memory = filled(filler, rng)
        q = memory.queries(len(STREAMS), TOKENS)

        async def cancel_some() -> tuple[regions.RegionPool, np.ndarray]:
            async with recollect.connect_async(server.unix_url) as client:
                space = await client.namespace(memory.ns.name)
                for delay_ms in (0, 0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20):
                    asked = asyncio.create_task(
                        space.search(0, q, top_k=TOP_K, streams=STREAMS, include=["keys", "values"])
                    )
                    await asyncio.sleep(delay_ms / 1000)
                    asked.cancel()
                    await asyncio.gather(asked, return_exceptions=True)
                del asked  # whose result may lie in a region
                pool = pool_of(client)
                assert pool._not_before_s == 0.0
                found = await space.search(0, q, top_k=TOP_K, streams=STREAMS, include=["values"])
                scores = found.scores
                del found
                assert pool._count == idle_of(pool) >= 1
                return pool, scores

        pool, scores = asyncio.run(cancel_some())
        expected = memory.ns.search(0, q, top_k=TOP_K, streams=STREAMS).scores
        np.testing.assert_array_equal(scores, expected)
        assert (idle_of(pool), pool._count) == (0, 0)


@pytest.mark.parametrize("way", list(OPEN))
@pytest.mark.parametrize("cause", ["a caller in a hurry", "an outage"])
def test_what_passes_leaves_sharing_as_it_is(
    rng: np.random.Generator, tmp_path: Path, cause: str, way: str
) -> None:
    """A call with too little time, or in an outage, costs all others half a minute of sharing."""
    path = tmp_path / "s"
    with (
        ServerProcess(socket=path) as server,
        recollect.connect(server.unix_url) as filler,
        OPEN[way](server.unix_url, retries=20) as client,
    ):
        memory = filled(filler, rng)
        q = memory.queries(len(STREAMS), TOKENS)
        space = client.namespace(memory.ns.name)
        space.search(0, q[:, :, :1], top_k=1, streams=STREAMS)  # asks for the limits first
        server.process.send_signal(signal.SIGSTOP if cause == "a caller in a hurry" else signal.SIGKILL)
        with pytest.raises((recollect.DeadlineExceededError, recollect.UnavailableError)):
            space.search(0, q, top_k=TOP_K, streams=STREAMS, include=["keys"], timeout_s=0.2)
        pool = pool_of(client)
        assert pool._count == 0
        if cause == "a caller in a hurry":
            server.process.send_signal(signal.SIGCONT)
            space.search(0, q, top_k=TOP_K, streams=STREAMS, include=["keys"])
        else:
            server.wait()
            with ServerProcess(socket=path):
                client.server_info()  # is repeated until the server is found
                read(filled(client, rng))
        assert pool._count >= 1


def test_a_server_that_starts_again_has_other_regions(rng: np.random.Generator, tmp_path: Path) -> None:
    """A client goes on with regions of a server that is gone, and reads what nobody writes any more."""
    path = tmp_path / "s"
    with ServerProcess(socket=path) as server, recollect.connect(server.unix_url) as client:
        read(filled(client, rng))
        server.kill()
        with ServerProcess(socket=path):  # its socket for regions was left behind
            memory = filled(client, rng)
            for _ in range(3):
                read(memory)
            assert pool_of(client)._count >= 1


def test_a_call_that_fails_gives_its_region_up(rng: np.random.Generator) -> None:
    """The server may still write to a region of a call that was given up, under the next one's answer."""
    with ServerProcess() as server, recollect.connect(server.unix_url) as client:
        memory = filled(client, rng)
        read(memory)
        held = pool_of(client)._count
        assert idle_of(pool_of(client)) == held
        with pytest.raises(recollect.NotFoundError, match="nobody"):
            memory.ns.search(
                0, memory.queries(2, TOKENS), top_k=TOP_K, streams=["a", "nobody"], include=["values"]
            )
        assert pool_of(client)._count == idle_of(pool_of(client)) == held - 1
        read(memory)


def test_regions_end_with_their_client(rng: np.random.Generator) -> None:
    """Processes forked from a client, or calls that end after it, keep its regions as long as they live."""
    with ServerProcess(limits={"regions_max": 1}) as server:
        with recollect.connect(server.unix_url) as client:
            memory = filled(client, rng)
            pool = pool_of(client)
            in_use = pool.take(0)
            assert in_use is not None
            forked = in_use.connection.dup()  # as a child has it
            with pool.lent(in_use):
                client.close()
        assert in_use.connection.fileno() == -1
        with forked:
            end = time.monotonic() + PATIENCE_S
            while True:  # a client that is refused one does not ask again for a while
                with recollect.connect(server.unix_url) as other:
                    q = memory.queries(2, TOKENS)
                    other.namespace(memory.ns.name).search(
                        0, q, top_k=TOP_K, streams=STREAMS, include=["values"]
                    )
                    if idle_of(pool_of(other)):
                        break
                assert time.monotonic() < end
                time.sleep(0.05)


def test_a_path_without_room_for_another_socket(rng: np.random.Generator, tmp_path: Path) -> None:
    """A server whose socket has the longest name that there may be does not start, or cannot be used."""
    path = tmp_path / "s"
    path = tmp_path / ("s" * (107 - len(str(path)) + 1))
    with ServerProcess(socket=path) as server, recollect.connect(server.unix_url) as client:
        read(filled(client, rng))
        assert pool_of(client)._count == 0
        assert "too long" in server.log


class Upload:
    """An add that is worth a region, and is never answered."""

    size_bytes = regions.SHARED_FROM_BYTES

    def whole(self) -> Message:
        return pb.AddRequest()

    def beside(self, region: regions.Region) -> Message:
        return pb.AddRequest(region=region.id)


class Timed(transports.GrpcTransport):
    """Notes how long each of its messages may take."""

    allowed_s: list[float | None]

    def call(
        self, method: str, request: Message, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply:
        self.allowed_s = [*vars(self).get("allowed_s", []), timeout_s]
        return super().call(method, request, reply_type, timeout_s=timeout_s)


class AsyncTimed(transports.AsyncGrpcTransport):
    """Notes how long each of its messages may take."""

    allowed_s: list[float | None]

    async def call(
        self, method: str, request: Message, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply:
        self.allowed_s = [*vars(self).get("allowed_s", []), timeout_s]
        return await super().call(method, request, reply_type, timeout_s=timeout_s)


def unanswered_upload(url: str) -> list[float | None]:
    """What the messages of an upload were allowed each."""
    transport = Timed(parse_url(url), None)
    with pytest.raises(recollect.DeadlineExceededError):
        transport.upload(ADD, Upload(), pb.AddResponse, timeout_s=UPLOAD_S)
    transport.close()
    return transport.allowed_s


async def async_unanswered_upload(url: str) -> list[float | None]:
    """The same, from an event loop."""
    transport = AsyncTimed(parse_url(url), None)
    with pytest.raises(recollect.DeadlineExceededError):
        await transport.upload(ADD, Upload(), pb.AddResponse, timeout_s=UPLOAD_S)
    await transport.close()
    return transport.allowed_s


def test_the_wait_for_a_region_is_of_the_calls_time() -> None:
    """A server that hangs makes a call wait twice as long as its caller allowed."""
    with ServerProcess() as server:
        server.process.send_signal(signal.SIGSTOP)
        for first_s, second_s in (
            unanswered_upload(server.unix_url),
            asyncio.run(async_unanswered_upload(server.unix_url)),
        ):
            assert first_s is not None
            assert second_s is not None
            assert second_s < first_s / 2
