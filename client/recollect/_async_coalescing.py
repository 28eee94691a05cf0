"""Small attends of an event loop that wait for the server at the same time go to it as one: see `_batches`.

What finds none on its way is sent in the event loop's next turn, with whatever else came in this one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Hashable
from typing import cast

from recollect._attends import Attend, joined, rows_of
from recollect._batches import Line, is_small, most_patient, rows_in, too_late
from recollect._forks import renewed_in_child
from recollect._results import A, Array, AttendResult
from recollect._retry import Deadline
from recollect._runner import AsyncRunner


class _Waiting:
    """An attend that may have to wait for the one before it."""

    __slots__ = ("answer", "asked", "deadline")

    def __init__(self, asked: Attend[Array], deadline: Deadline) -> None:
        self.asked = asked
        self.deadline = deadline
        # None: it is to ask on its own.
        self.answer: asyncio.Future[AttendResult[Array] | None] = asyncio.get_running_loop().create_future()

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
            self.answer.set_exception(too_late(self.deadline))


class AsyncCoalescing:
    """Runs attends, small ones together. For one event loop.

    Args:
        runner: What they are sent with.
    """

    def __init__(self, runner: AsyncRunner) -> None:
        self._runner = runner
        self._lines: dict[Hashable, Line[_Waiting]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        renewed_in_child(self)

    async def attend(self, asked: Attend[A], timeout_s: float | None) -> AttendResult[A]:
        """Sends one attend, alone or with others, and waits for its answer.

        Raises:
            RecollectError: Its own; nobody else's.
        """
        deadline = self._runner.deadline(timeout_s)
        if not is_small(asked):
            return await self._runner.run_by(deadline, asked.split)
        asked = asked.copied()  # it may leave later
        kind = asked.kind
        waiting = _Waiting(cast("Attend[Array]", asked), deadline)
        line = self._lines.get(kind)
        if line is None:
            line = self._lines[kind] = Line(kind)
            if await self._leaves_alone(line):
                try:
                    return await self._runner.run_by(deadline, asked.split)
                finally:
                    self._go_on(line)
            line.waiting.appendleft(waiting)
            self._go_on(line)
        else:
            line.waiting.append(waiting)
        answer = await waiting.answered()
        if answer is None:
            return await self._runner.run_by(deadline, asked.split)
        return cast("AttendResult[A]", answer)

    def forked(self) -> None:
        """In the child: what is under way is of the parent's event loop, which does not run here."""
        self._lines, self._tasks = {}, set()

    async def _leaves_alone(self, line: Line[_Waiting]) -> bool:
        """Lets those join who come in this turn of the event loop; whether nobody did."""
        try:
            await asyncio.sleep(0)
        except BaseException:  # its caller gave up; others may have joined
            self._go_on(line)
            raise
        return not line.waiting

    def _go_on(self, line: Line[_Waiting]) -> None:
        batch = line.next_batch()
        if not batch:
            del self._lines[line.kind]
            return
        task = asyncio.get_running_loop().create_task(self._send(line, batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, line: Line[_Waiting], batch: list[_Waiting]) -> None:
        answers: list[AttendResult[Array]] = []
        batch = [each for each in batch if not each.answer.done()]  # the others have given up
        try:
            # An error may be of one row. Whose it is finds out by asking on its own; nobody else sees it.
            with contextlib.suppress(Exception):
                if batch:
                    asked = [each.asked for each in batch]
                    result = await self._runner.run_by(most_patient(batch).deadline, joined(asked).split)
                    answers = [rows_of(result, *rows, asked[0].read) for rows in rows_in(asked)]
        finally:
            for index, each in enumerate(batch):
                if not each.answer.done():
                    each.answer.set_result(answers[index] if answers else None)
            self._go_on(line)
