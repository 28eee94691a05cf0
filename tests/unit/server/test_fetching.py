"""An answer is sent while the rest of it is fetched; its errors, and callers that leave in the middle."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import AsyncGenerator

import numpy as np
import pytest

from recollect.v1 import memory_pb2 as pb
from recollect_server.application.commands import Coming, Found
from recollect_server.domain.errors import DeadlineExceededError
from recollect_server.domain.spec import Dtype
from recollect_server.rpc.fetching import Fetching
from recollect_server.rpc.streams import CHUNK_BYTES, SearchStream

SHAPE = (1, 1, 1024, 16)
DIM = 32
COMING = Coming((*SHAPE, DIM), Dtype.FLOAT32)
ELEMENTS = CHUNK_BYTES // 4
KEYS = np.arange(COMING.size_bytes // 4, dtype=np.float32)
PATIENCE_S = 20.0


class Device:
    """A thread of its own that finds things when the test says so."""

    def __init__(self, error: Exception | None = None) -> None:
        self.fetching = Fetching()
        self.may_fetch = [threading.Event() for _ in range(3)]
        self.was_given_up = False
        self._error = error
        scores = np.linspace(1, 0, KEYS.size // DIM, dtype=np.float32).reshape(SHAPE)
        self.found = Found(scores, np.arange(scores.size).reshape(SHAPE), None, None, (7,))

    def _run(self) -> Found:
        self.fetching.begin(self.found, keys=COMING, values=None)
        for number, may in enumerate(self.may_fetch[: 1 if self._error else 2]):
            assert may.wait(PATIENCE_S)
            self.fetching.room(ELEMENTS)[:] = KEYS[number * ELEMENTS : (number + 1) * ELEMENTS]
            self.fetching.fetched(ELEMENTS)
        assert self.may_fetch[-1].wait(PATIENCE_S)
        if self._error is not None:
            raise self._error
        return self.found

    async def search(self) -> Found:
        try:
            return await asyncio.to_thread(self._run)
        except asyncio.CancelledError:
            self.was_given_up = True
            for may in self.may_fetch:
                may.set()
            raise


async def stream_of(device: Device) -> SearchStream:
    """Its answer."""
    search = asyncio.create_task(device.search())
    return SearchStream(await device.fetching.begun(search), device.fetching, search)


async def next_of(parts: AsyncGenerator[bytes, None]) -> pb.SearchPart:
    """The next part, or the test fails."""
    return pb.SearchPart.FromString(await asyncio.wait_for(anext(parts), PATIENCE_S))


async def test_what_is_fetched_is_sent_before_the_rest_is() -> None:
    """A large answer leaves when all of it has been fetched: the time for that is not hidden."""
    assert KEYS.size == 2 * ELEMENTS
    device = Device()
    parts = (await stream_of(device)).parts()
    header = await next_of(parts)
    assert list(header.answer.keys.shape) == [*SHAPE, DIM]
    small = [(await next_of(parts)).array for _ in range(2)]
    assert small == [pb.SEARCH_ARRAY_SCORES, pb.SEARCH_ARRAY_IDS]
    data = b""
    for number, may in enumerate(device.may_fetch[:2]):
        coming = asyncio.ensure_future(anext(parts))
        await asyncio.sleep(0.01)
        assert not coming.done(), "nothing more is there"
        may.set()
        part = pb.SearchPart.FromString(await asyncio.wait_for(coming, PATIENCE_S))
        assert (part.array, part.offset) == (pb.SEARCH_ARRAY_KEYS, number * CHUNK_BYTES)
        data += part.data
    assert data == KEYS.tobytes()
    device.may_fetch[2].set()
    with pytest.raises(StopAsyncIteration):
        await anext(parts)
    assert not device.was_given_up


async def test_a_part_that_was_not_filled_ends_where_what_was_written_does() -> None:
    """A caller gets memory that nobody wrote to, or bytes of a part at another's place."""
    device = Device()
    fetching, sizes = device.fetching, (3 * DIM, ELEMENTS, KEYS.size - ELEMENTS - 3 * DIM)

    async def search() -> Found:
        fetching.begin(device.found, keys=COMING, values=None)
        first = 0
        for size in sizes:
            fetching.room(ELEMENTS)[:size] = KEYS[first : first + size]
            fetching.fetched(size)
            first += size
        return device.found

    task = asyncio.create_task(search())
    parts = SearchStream(await fetching.begun(task), fetching, task).parts()
    came = [pb.SearchPart.FromString(part) async for part in parts][-len(sizes) :]
    assert [(part.array, part.offset) for part in came] == [
        (pb.SEARCH_ARRAY_KEYS, 4 * first) for first in (0, sizes[0], sizes[0] + sizes[1])
    ]
    assert b"".join(part.data for part in came) == KEYS.tobytes()


async def test_all_of_it_can_be_had_in_one_part() -> None:
    """In one process a large answer comes without its keys, or before they are there."""
    device = Device()
    for may in device.may_fetch:
        may.set()
    answer = (await (await stream_of(device)).whole()).answer
    assert answer.keys.data == KEYS.tobytes()
    assert answer.scores.data == device.found.scores.tobytes()


async def test_a_search_that_fails_midway_ends_the_answer_with_its_error() -> None:
    """A caller takes half an answer for a whole one, or waits for ever for the rest."""
    device = Device(DeadlineExceededError("too late"))
    parts = (await stream_of(device)).parts()
    for _ in range(3):
        await next_of(parts)
    device.may_fetch[0].set()
    assert (await next_of(parts)).data == KEYS[:ELEMENTS].tobytes()
    device.may_fetch[2].set()
    with pytest.raises(DeadlineExceededError, match="too late"):
        await asyncio.wait_for(anext(parts), PATIENCE_S)


async def test_who_leaves_has_the_search_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """The device goes on with what nobody wants; or an error that nobody asked for is logged as a defect."""
    device = Device()
    parts = (await stream_of(device)).parts()
    await next_of(parts)
    await parts.aclose()
    await asyncio.sleep(0)
    assert device.was_given_up
    failing = Device(DeadlineExceededError("too late"))
    parts = (await stream_of(failing)).parts()
    await next_of(parts)
    with caplog.at_level(logging.ERROR):
        for may in failing.may_fetch:
            may.set()
        await asyncio.sleep(0.05)
        await parts.aclose()
        del parts, failing
        gc.collect()
        await asyncio.sleep(0)
    assert not caplog.records


async def test_who_leaves_before_all_of_it_is_there_has_the_search_given_up() -> None:
    """In one process, the device goes on with a large answer that nobody wants."""
    device = Device()
    waiting = asyncio.create_task((await stream_of(device)).whole())
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait([waiting])
    await asyncio.sleep(0)
    assert device.was_given_up


async def test_who_does_not_wait_has_the_search_given_up() -> None:
    """A call that is cancelled before anything was found goes on at the device."""
    fetching, ended = Fetching(), asyncio.Event()

    async def search() -> Found:
        try:
            await asyncio.sleep(PATIENCE_S)
        finally:
            ended.set()
        raise AssertionError

    waiting = asyncio.create_task(fetching.begun(asyncio.create_task(search())))
    await asyncio.sleep(0.01)
    waiting.cancel()
    await asyncio.wait_for(ended.wait(), PATIENCE_S)


class Message:
    """What a call brought."""


@pytest.mark.usefixtures("without_garbage_collection")
@pytest.mark.parametrize("begins", [False, True])
async def test_an_error_keeps_nothing(begins: bool) -> None:
    """What a refused call brought, megabytes, stays until garbage is collected."""

    async def call(message: Message) -> None:
        fetching = Fetching()
        found = Device().found

        async def search() -> Found:
            if begins:
                fetching.begin(found, keys=COMING, values=None)
                await asyncio.sleep(0.01)
            raise DeadlineExceededError(f"too late for {message}")

        task = asyncio.create_task(search())
        try:
            stream = SearchStream(await fetching.begun(task), fetching, task)
        finally:
            del task
        async for _ in stream.parts():
            pass

    message = Message()
    watched = weakref.ref(message)
    try:
        await call(message)
    except DeadlineExceededError:
        del message
    await asyncio.sleep(0)
    assert watched() is None
