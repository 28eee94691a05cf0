"""Clients in processes that are forked, as the workers of a data loader are."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import recollect
from recollect import _frames
from recollect._frames import CONNECTIONS_MAX
from recollect._grpc_transport import AsyncGrpcTransport
from tests.server_process import ServerProcess
from tests.unit.client.attends import DIM, HEADS, queries

PATIENCE_S = 60.0


@contextlib.contextmanager
def forked(check: Callable[[], None]) -> Iterator[None]:
    """Runs a check in a child, and meanwhile what stands in the block; the child must end well."""
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(int(PATIENCE_S))  # ends what waits for ever
            check()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    yield
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def until(holds: Callable[[], bool]) -> None:
    """Waits for it."""
    ends_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < ends_s
        time.sleep(0.001)


def fill(client: recollect.Client) -> recollect.Namespace:
    """A namespace with one stream."""
    namespace = client.create_namespace(
        "n", layers=[0], heads=HEADS, key_dim=DIM, value_dim=DIM, capacity=64, dtype="float32"
    )
    entries = np.random.default_rng(0).standard_normal((1, HEADS, 16, DIM), dtype=np.float32)
    namespace.add(0, entries, entries, streams=["s"])
    return namespace


class Loop(threading.Thread):
    """An event loop that runs beside the test."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.loop = asyncio.new_event_loop()
        self.start()

    def run(self) -> None:
        """Until it is stopped."""
        self.loop.run_forever()

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.join()
        self.loop.close()


def test_attends_of_the_parents_threads_do_not_hold_up_the_childs() -> None:
    """A worker forked while threads decode waits for their answers: its small attends never leave."""
    with ServerProcess() as server, recollect.connect(server.unix_url) as client:
        namespace = fill(client)
        coalescing = client._coalescing
        assert coalescing is not None

        def attend() -> None:
            namespace.attend(0, queries(0), top_k=4, streams=["s"], timeout_s=PATIENCE_S / 4)

        attend()
        server.process.send_signal(signal.SIGSTOP)
        threads = [threading.Thread(target=attend) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: [line.under_way for line in coalescing._lines.values()] == [2])
        with coalescing._lock, forked(attend):  # as if a thread was about to join them
            server.process.send_signal(signal.SIGCONT)
        for thread in threads:
            thread.join()
        attend()


def test_attends_of_the_parents_event_loop_do_not_hold_up_the_childs() -> None:
    """A worker forked while an event loop decodes waits for a task that does not run in it."""
    with ServerProcess() as server, Loop() as beside:
        with recollect.connect(server.unix_url) as filler:
            fill(filler)
        client = recollect.connect_async(server.unix_url)
        coalescing = client._coalescing
        assert coalescing is not None
        namespace = asyncio.run_coroutine_threadsafe(client.namespace("n"), beside.loop).result()

        async def attend() -> None:
            await namespace.attend(0, queries(0), top_k=4, streams=["s"], timeout_s=PATIENCE_S / 4)

        asyncio.run_coroutine_threadsafe(attend(), beside.loop).result()
        server.process.send_signal(signal.SIGSTOP)
        held = asyncio.run_coroutine_threadsafe(attend(), beside.loop)
        until(lambda: bool(coalescing._lines))
        with forked(lambda: asyncio.run(attend())):
            server.process.send_signal(signal.SIGCONT)
        held.result()
        asyncio.run_coroutine_threadsafe(client.close(), beside.loop).result()


def test_calls_of_the_parents_event_loop_take_no_connection_of_the_childs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker forked while many calls are under way has all of its own take gRPC, for good."""
    monkeypatch.setattr(_frames, "GREETING_S", PATIENCE_S)
    with ServerProcess() as server, Loop() as beside:
        client = recollect.connect_async(server.unix_url)
        transport = client._runner._transport
        assert isinstance(transport, AsyncGrpcTransport)
        direct = transport._direct

        async def ask() -> None:
            await client.server_info(timeout_s=PATIENCE_S / 4)

        async def ask_in_child() -> None:
            await ask()
            assert len(direct._idle) == 1

        async def ask_all() -> None:
            await asyncio.gather(*(ask() for _ in range(CONNECTIONS_MAX)))

        asyncio.run_coroutine_threadsafe(ask_all(), beside.loop).result()
        assert len(direct._idle) == CONNECTIONS_MAX
        server.process.send_signal(signal.SIGSTOP)
        held = asyncio.run_coroutine_threadsafe(ask_all(), beside.loop)
        until(lambda: not direct._idle)
        with forked(lambda: asyncio.run(ask_in_child())):
            server.process.send_signal(signal.SIGCONT)
        held.result()
        asyncio.run_coroutine_threadsafe(client.close(), beside.loop).result()


def test_an_embedded_memory_is_its_processs_own() -> None:
    """A worker that uses or closes its parent's embedded memory, whose threads it lacks, hangs."""
    client = recollect.connect("embedded://")
    async_client = recollect.connect_async("embedded://")

    async def ask() -> None:
        async with async_client:
            await async_client.server_info()

    def check() -> None:
        with client, pytest.raises(recollect.FailedPreconditionError, match="forked") as caught:
            client.server_info()
        assert caught.value.reason == "FORKED"
        with pytest.raises(recollect.FailedPreconditionError, match="forked"):
            asyncio.run(ask())
        with recollect.connect("embedded://") as own:
            own.server_info()

    with forked(check):
        pass
    client.server_info()
    client.close()
    asyncio.run(ask())
