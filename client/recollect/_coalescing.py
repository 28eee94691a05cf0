"""Small attends that wait for the server at the same time go to it as one message.

A message costs client and server about half a millisecond whatever is in it; what a decoding step asks for
takes less. So of the attends that are alike but for their streams and queries (of one namespace and layer,
with the same top_k, scale, ...) one at a time is on its way: those that come meanwhile are collected, and
leave together when it is back. Nothing waits for a clock: what finds none on its way is sent in the event
loop's next turn, with whatever else came in this one. The server would do the reads of a namespace one after
the other anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, cast

from google.protobuf.message import Message

from recollect._work import Collector, Reply, Upload
from recollect.errors import DeadlineExceededError
from recollect.v1 import memory_pb2 as pb

if TYPE_CHECKING:
    from recollect._transport import AsyncTransport

ROWS_MAX = 64
"""Of a batch, and of what is put into one."""

SMALL_BYTES = 32 * 1024
"""Of queries and ids. What is larger is worth a message of its own."""

BATCH_BYTES = 512 * 1024
"""Of the queries and ids of a batch: one message, far below any server's limit."""


class _Waiting:
    """An attend that may have to wait for the one before it."""

    __slots__ = ("answer", "bytes", "end_s", "request")

    def __init__(self, request: pb.AttendRequest, size: int, timeout_s: float | None) -> None:
        self.request = request
        self.bytes = size
        self.end_s = None if timeout_s is None else time.monotonic() + timeout_s
        # None: it is to ask on its own.
        self.answer: asyncio.Future[pb.AttendResponse | None] = asyncio.get_running_loop().create_future()

    def left_s(self) -> float | None:
        """Until its caller gives up; None: never."""
        return None if self.end_s is None else max(0.0, self.end_s - time.monotonic())

    async def answered(self, timeout_s: float | None) -> pb.AttendResponse | None:
        """Waits for the answer.

        Raises:
            DeadlineExceededError: It took longer than its caller waits.
        """
        if timeout_s is None:
            return await self.answer
        # Less than half of what `asyncio.timeout` takes.
        timer = self.answer.get_loop().call_later(timeout_s, self._give_up, timeout_s)
        try:
            return await self.answer
        finally:
            timer.cancel()

    def _give_up(self, timeout_s: float) -> None:
        if not self.answer.done():
            self.answer.set_exception(_late(timeout_s))


class _Flight:
    """One message on its way, and those that wait for it to be back."""

    __slots__ = ("key", "request", "waiting")

    def __init__(self, request: pb.AttendRequest) -> None:
        self.request = request
        self.key: bytes | None = None  # made when there is another to compare with
        self.waiting: deque[_Waiting] = deque()


class _Flights:
    """What is on its way, by what it has in common with others. Not thread-safe."""

    def __init__(self) -> None:
        self._lone: _Flight | None = None
        self._by_key: dict[bytes, _Flight] = {}

    def join(self, waiting: _Waiting) -> _Flight | None:
        """A flight for it alone, which may begin; or None: it waits for another one's end."""
        if self._lone is None and not self._by_key:
            self._lone = _Flight(waiting.request)
            return self._lone
        if self._lone is not None:
            self._lone.key = _key(self._lone.request)
            self._by_key[self._lone.key] = self._lone
            self._lone = None
        key = _key(waiting.request)
        flight = self._by_key.get(key)
        if flight is not None:
            flight.waiting.append(waiting)
            return None
        flight = self._by_key[key] = _Flight(waiting.request)
        flight.key = key
        return flight

    def landed(self, flight: _Flight) -> list[_Waiting]:
        """Those that may leave now, together, as the same flight; none if nobody waits: it is over."""
        batch: list[_Waiting] = []
        rows = size = 0
        while flight.waiting:
            first = flight.waiting[0]
            rows, size = rows + len(first.request.streams), size + first.bytes
            if batch and (rows > ROWS_MAX or size > BATCH_BYTES):
                break
            batch.append(flight.waiting.popleft())
        if not batch:
            if flight is self._lone:
                self._lone = None
            elif flight.key is not None:
                del self._by_key[flight.key]
        return batch


class AsyncCoalescing:
    """A transport that sends small attends together. For one event loop.

    Each caller keeps its own deadline, and gets its own rows or its own error. Of the trace of a message that
    carries several, it is known only that it is part of one of theirs.

    Args:
        inner: What carries the messages.
    """

    def __init__(self, inner: AsyncTransport) -> None:
        self._inner = inner
        self._flights: _Flights = _Flights()
        self._tasks: set[asyncio.Task[None]] = set()

    async def call(
        self, method: str, request: Message, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Sends one request, alone or with others, and waits for its answer."""
        size = _small_bytes(request)
        if size is None:
            return await self._inner.call(method, request, reply_type, timeout_s=timeout_s)
        waiting = _Waiting(cast("pb.AttendRequest", request), size, timeout_s)
        flight = self._flights.join(waiting)
        if flight is not None:
            if await self._leaves_alone(method, flight):
                try:
                    return await self._inner.call(method, request, reply_type, timeout_s=waiting.left_s())
                finally:
                    self._go_on(method, flight)
            flight.waiting.appendleft(waiting)
            self._go_on(method, flight)
        reply = await waiting.answered(timeout_s)
        if reply is None:
            return await self._inner.call(method, request, reply_type, timeout_s=waiting.left_s())
        return cast("Reply", reply)

    async def stream(
        self, method: str, request: Message, collector: Collector[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Sends one request on its own: what is streamed is large."""
        return await self._inner.stream(method, request, collector, timeout_s=timeout_s)

    async def upload(
        self, method: str, upload: Upload, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Sends one request on its own: entries are large."""
        return await self._inner.upload(method, upload, reply_type, timeout_s=timeout_s)

    async def close(self) -> None:
        """Closes the transport beneath."""
        await self._inner.close()

    async def _leaves_alone(self, method: str, flight: _Flight) -> bool:
        """Lets those join who come in this turn of the event loop; whether nobody did."""
        try:
            await asyncio.sleep(0)
        except BaseException:  # its caller gave up; others may have joined
            self._go_on(method, flight)
            raise
        return not flight.waiting

    def _go_on(self, method: str, flight: _Flight) -> None:
        batch = self._flights.landed(flight)
        if batch:
            task = asyncio.get_running_loop().create_task(self._send(method, flight, batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, method: str, flight: _Flight, batch: list[_Waiting]) -> None:
        replies: Iterator[pb.AttendResponse | None] = iter(())
        batch = [each for each in batch if not each.answer.done()]  # the others have given up
        try:
            # An error may be of one row. Whose it is finds out by asking on its own; nobody else sees it.
            with contextlib.suppress(Exception):
                if batch:
                    merged, left_s = _merged(batch), _longest_s(batch)
                    whole = await self._inner.call(method, merged, pb.AttendResponse, timeout_s=left_s)
                    replies = iter(_split(whole, batch))
        finally:
            for each in batch:
                reply = next(replies, None)
                if not each.answer.done():
                    each.answer.set_result(reply)
            self._go_on(method, flight)


def _late(timeout_s: float) -> DeadlineExceededError:
    return DeadlineExceededError(f"{timeout_s:g} s passed before the call could be sent and answered")


def _longest_s(batch: Sequence[_Waiting]) -> float | None:
    """Whoever has less time gives up by itself."""
    longest = 0.0
    for each in batch:
        left_s = each.left_s()
        if left_s is None:
            return None
        longest = max(longest, left_s)
    return longest


def _small_bytes(request: Message) -> int | None:
    """Bytes of queries and ids, if the request is an attend that others may join."""
    if not isinstance(request, pb.AttendRequest) or len(request.queries.shape) != 4:
        return None
    rows, heads, tokens, _ = request.queries.shape
    size = len(request.queries.data) + 4 * rows * heads * tokens * request.top_k
    return size if size <= SMALL_BYTES and rows <= ROWS_MAX and rows == len(request.streams) else None


def _key(request: pb.AttendRequest) -> bytes:
    """All but the rows, whatever the request has."""
    common = pb.AttendRequest()
    common.CopyFrom(request)
    common.ClearField("streams")
    common.ClearField("min_sequences")
    common.queries.ClearField("data")
    common.queries.shape[0] = int(bool(request.min_sequences))  # all of a batch have some, or none
    return common.SerializeToString(deterministic=True)


def _merged(batch: Sequence[_Waiting]) -> pb.AttendRequest:
    requests = [each.request for each in batch]
    if len(requests) == 1:
        return requests[0]
    merged = pb.AttendRequest()
    merged.CopyFrom(requests[0])
    for request in requests[1:]:
        merged.streams.extend(request.streams)
        merged.min_sequences.extend(request.min_sequences)
    merged.queries.data = b"".join(request.queries.data for request in requests)
    merged.queries.shape[0] = len(merged.streams)
    return merged


def _split(whole: pb.AttendResponse, batch: Sequence[_Waiting]) -> list[pb.AttendResponse]:
    """The rows of each; what does not fit is for the checks of each reply to notice."""
    if len(batch) == 1:
        return [whole]
    bounds = list(accumulate((len(each.request.streams) for each in batch), initial=0))
    tensors = [whole.output, whole.lse] + ([whole.ids.offsets] if whole.HasField("ids") else [])
    parts = [_rows_of(tensor, bounds) for tensor in tensors]
    replies = []
    for index, (first, end) in enumerate(pairwise(bounds)):
        output, lse, *ids = (part[index] for part in parts)
        replies.append(
            pb.AttendResponse(
                output=output,
                lse=lse,
                ids=pb.EntryIds(offsets=ids[0], first_ids=whole.ids.first_ids[first:end]) if ids else None,
                next_sequences=whole.next_sequences[first:end],
            )
        )
    return replies


def _rows_of(tensor: pb.Tensor, bounds: Sequence[int]) -> list[pb.Tensor]:
    data, row_bytes, shape = tensor.data, len(tensor.data) // bounds[-1], tensor.shape[1:]
    return [
        pb.Tensor(
            data=data[first * row_bytes : end * row_bytes], dtype=tensor.dtype, shape=[end - first, *shape]
        )
        for first, end in pairwise(bounds)
    ]
