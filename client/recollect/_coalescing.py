"""Small attends that wait for the server at the same time go to it as one.

A message costs client and server about half a millisecond whatever is in it; what a decoding step asks for
takes less. So of the attends that are alike but for their streams and queries (of one namespace and layer,
with the same top_k, scale, ...) one at a time is on its way: those that come meanwhile are collected, and
leave together when it is back, as one attend of all their rows. Nothing waits for a clock: what finds none on
its way is sent in the event loop's next turn, with whatever else came in this one. The server would do the
reads of a namespace one after the other anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Hashable, Sequence
from itertools import accumulate, pairwise
from typing import cast

from recollect._attends import Attend, joined, rows_of
from recollect._results import A, Array, AttendResult
from recollect._retry import Deadline
from recollect._runner import AsyncRunner
from recollect.errors import DeadlineExceededError

ROWS_MAX = 64
"""Of a batch, and of what is put into one."""

SMALL_BYTES = 32 * 1024
"""Of queries and ids. What is larger is worth a message of its own."""

BATCH_BYTES = 512 * 1024
"""Of the queries and ids of a batch: one message, far below any server's limit."""


class _Waiting:
    """An attend that may have to wait for the one before it."""

    __slots__ = ("answer", "asked", "bytes", "deadline")

    def __init__(self, asked: Attend[Array], size: int, deadline: Deadline) -> None:
        self.asked = asked
        self.bytes = size
        self.deadline = deadline
        # None: it is to ask on its own.
        self.answer: asyncio.Future[AttendResult[Array] | None] = asyncio.get_running_loop().create_future()

    @property
    def rows(self) -> int:
        return len(self.asked.read.streams)

    async def answered(self) -> AttendResult[Array] | None:
        """Waits for the answer.

        Raises:
            DeadlineExceededError: It took longer than its caller waits.
        """
        left_s = self.deadline.left_s()
        if left_s is None:
            return await self.answer
        # Less than half of what `asyncio.timeout` takes.
        timer = self.answer.get_loop().call_later(left_s, self._give_up)
        try:
            return await self.answer
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        if not self.answer.done():
            late = f"{self.deadline.timeout_s:g} s passed before the call could be sent and answered"
            self.answer.set_exception(DeadlineExceededError(late))


class _Flight:
    """One message on its way, and those that wait for it to be back."""

    __slots__ = ("kind", "waiting")

    def __init__(self, kind: Hashable) -> None:
        self.kind = kind
        self.waiting: deque[_Waiting] = deque()

    def next_batch(self) -> list[_Waiting]:
        """Those that may leave now, together; none if nobody waits."""
        batch: list[_Waiting] = []
        rows = size = 0
        while self.waiting:
            first = self.waiting[0]
            rows, size = rows + first.rows, size + first.bytes
            if batch and (rows > ROWS_MAX or size > BATCH_BYTES):
                break
            batch.append(self.waiting.popleft())
        return batch


class Coalescing:
    """Runs attends, small ones together. For one event loop.

    Each caller keeps its own deadline, and gets its own rows or its own error. Of the trace of a message that
    carries several, it is known only that it is part of one of theirs.

    Args:
        runner: What they are sent with.
    """

    def __init__(self, runner: AsyncRunner) -> None:
        self._runner = runner
        self._flights: dict[Hashable, _Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def attend(self, asked: Attend[A], timeout_s: float | None) -> AttendResult[A]:
        """Sends one attend, alone or with others, and waits for its answer.

        Raises:
            RecollectError: Its own; nobody else's.
        """
        deadline, size = self._runner.deadline(timeout_s), asked.size_bytes
        if size > SMALL_BYTES or len(asked.read.streams) > ROWS_MAX:
            return await self._runner.run_by(deadline, asked.split)
        asked = asked.copied()  # it may leave later
        kind = asked.kind
        waiting = _Waiting(cast("Attend[Array]", asked), size, deadline)
        flight = self._flights.get(kind)
        if flight is None:
            flight = self._flights[kind] = _Flight(kind)
            if await self._leaves_alone(flight):
                try:
                    return await self._runner.run_by(deadline, asked.split)
                finally:
                    self._go_on(flight)
            flight.waiting.appendleft(waiting)
            self._go_on(flight)
        else:
            flight.waiting.append(waiting)
        answer = await waiting.answered()
        if answer is None:
            return await self._runner.run_by(deadline, asked.split)
        return cast("AttendResult[A]", answer)

    async def _leaves_alone(self, flight: _Flight) -> bool:
        """Lets those join who come in this turn of the event loop; whether nobody did."""
        try:
            await asyncio.sleep(0)
        except BaseException:  # its caller gave up; others may have joined
            self._go_on(flight)
            raise
        return not flight.waiting

    def _go_on(self, flight: _Flight) -> None:
        batch = flight.next_batch()
        if not batch:
            del self._flights[flight.kind]
            return
        task = asyncio.get_running_loop().create_task(self._send(flight, batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, flight: _Flight, batch: list[_Waiting]) -> None:
        answers: list[AttendResult[Array]] = []
        batch = [each for each in batch if not each.answer.done()]  # the others have given up
        try:
            # An error may be of one row. Whose it is finds out by asking on its own; nobody else sees it.
            with contextlib.suppress(Exception):
                if batch:
                    whole = joined([each.asked for each in batch])
                    result = await self._runner.run_by(_longest(batch), whole.split)
                    answers = _apart(result, batch)
        finally:
            for index, each in enumerate(batch):
                if not each.answer.done():
                    each.answer.set_result(answers[index] if answers else None)
            self._go_on(flight)


def _longest(batch: Sequence[_Waiting]) -> Deadline:
    """Whoever has less time gives up by itself."""
    return max((each.deadline for each in batch), key=lambda deadline: deadline.end_s)


def _apart(result: AttendResult[Array], batch: Sequence[_Waiting]) -> list[AttendResult[Array]]:
    """The rows of each."""
    if len(batch) == 1:
        return [result]
    bounds = accumulate((each.rows for each in batch), initial=0)
    like = batch[0].asked.read
    return [rows_of(result, first, end, like) for first, end in pairwise(bounds)]
