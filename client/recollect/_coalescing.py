"""Small attends of threads that wait for the server at the same time go to it as one: see `_batches`.

There is no thread for it: whoever of a batch has the most time sends it, the others sleep. Then each wakes
the next one: woken all at once they would stand in line for the interpreter, most of them asleep once more.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Hashable
from itertools import pairwise
from typing import cast

from recollect._attends import Attend, joined, rows_of
from recollect._batches import Line, is_small, most_patient, rows_in, too_late
from recollect._forks import renewed_in_child
from recollect._results import A, Array, AttendResult
from recollect._retry import Deadline
from recollect._runner import Runner

UNDER_WAY_MAX = 2
"""Messages of a kind: with one, two threads would do nothing but wake each other up in turn."""


class _Waiting:
    """An attend whose thread sleeps until it is to send a batch, or has its answer.

    Attributes:
        batch: What it is to send, itself among them; empty: nothing, somebody else did.
        found: By a batch, and its own rows of it, from one on and before another; None: it is to ask alone.
        next: Whom it is to wake up when it is awake, or gone.
        is_gone: It does not wait any more.
    """

    __slots__ = ("_asleep", "asked", "batch", "deadline", "found", "is_gone", "next")

    def __init__(self, asked: Attend[Array], deadline: Deadline) -> None:
        self.asked = asked
        self.deadline = deadline
        self.batch: list[_Waiting] = []
        self.found: tuple[AttendResult[Array], int, int] | None = None
        self.next: _Waiting | None = None
        self.is_gone = False
        self._asleep = threading.Lock()  # held until it is woken up; an event is made of several
        self._asleep.acquire()

    def sleep(self) -> bool:
        """Until it is woken up, or its time is over: then False."""
        left_s = max(0.0, self.deadline.end_s - time.monotonic())
        return self._asleep.acquire(timeout=min(left_s, threading.TIMEOUT_MAX))

    def wake(self) -> None:
        """Once."""
        self._asleep.release()


class Coalescing:
    """Runs attends, small ones together. For any number of threads.

    Args:
        runner: What they are sent with.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._lock = threading.Lock()  # of all that follows, and of what is in it
        self._lines: dict[Hashable, Line[_Waiting]] = {}
        renewed_in_child(self)

    def attend(self, asked: Attend[A], timeout_s: float | None) -> AttendResult[A]:
        """Sends one attend, alone or with others, and waits for its answer.

        Raises:
            RecollectError: Its own; nobody else's.
        """
        deadline = self._runner.deadline(timeout_s)
        if not is_small(asked):
            return self._runner.run_by(deadline, asked.split)
        waiting = _Waiting(cast("Attend[Array]", asked), deadline)
        line, batch = self._board(waiting)
        if not batch:
            batch = self._wait(line, waiting)
        if len(batch) > 1:
            self._send(line, batch, waiting)
        elif batch:
            try:
                return self._runner.run_by(deadline, asked.split)
            finally:
                self._go_on(line)
        if waiting.found is None:
            return self._runner.run_by(deadline, asked.split)
        return cast("AttendResult[A]", rows_of(*waiting.found, waiting.asked.read))

    def forked(self) -> None:
        """In the child: whoever sends or waits is a thread of the parent, and never comes back here."""
        self._lock, self._lines = threading.Lock(), {}

    def _board(self, waiting: _Waiting) -> tuple[Line[_Waiting], list[_Waiting]]:
        """Where it belongs; and itself, to be sent now, or nothing: it has to wait."""
        kind = waiting.asked.kind
        with self._lock:
            line = self._lines.get(kind)
            if line is None:
                line = self._lines[kind] = Line(kind)
            elif line.under_way < UNDER_WAY_MAX:
                line.under_way += 1
            else:
                line.waiting.append(waiting)
                return line, []
            return line, [waiting]

    def _wait(self, line: Line[_Waiting], waiting: _Waiting) -> list[_Waiting]:
        """What it is to send now; nothing if it was answered.

        Raises:
            DeadlineExceededError: It took longer than its caller waits.
        """
        is_awake = False
        try:
            is_awake = waiting.sleep()
        finally:  # what interrupts a thread may come here, too
            with self._lock:
                batch, waiting.batch = waiting.batch, []
                following, waiting.next = waiting.next, None
                waiting.is_gone = not is_awake
            if following is not None:
                following.wake()
            if not is_awake and batch:
                self._end(line, batch, waiting, None)
        if not is_awake:
            raise too_late(waiting.deadline)
        return batch

    def _send(self, line: Line[_Waiting], batch: list[_Waiting], sender: _Waiting) -> None:
        result: AttendResult[Array] | None = None
        try:
            # An error may be of one row. Whose it is finds out by asking alone; nobody else sees it.
            with contextlib.suppress(Exception):
                whole = joined([each.asked for each in batch])
                result = self._runner.run_by(sender.deadline, whole.split)
        finally:
            self._end(line, batch, sender, result)

    def _end(
        self,
        line: Line[_Waiting],
        batch: list[_Waiting],
        sender: _Waiting,
        result: AttendResult[Array] | None,
    ) -> None:
        """Has the next ones leave, and wakes the others of a batch up, in turn; its sender is awake."""
        self._go_on(line)
        for each, (first, end) in zip(batch, rows_in([each.asked for each in batch]), strict=True):
            each.found = None if result is None else (result, first, end)
        with self._lock:
            asleep = [each for each in batch if each is not sender and not each.is_gone]
            for each, following in pairwise(asleep):
                each.next = following
        if asleep:
            asleep[0].wake()

    def _go_on(self, line: Line[_Waiting]) -> None:
        with self._lock:
            batch: list[_Waiting] = []
            while line.waiting and not batch:
                batch = [each for each in line.next_batch() if not each.is_gone]
            if not batch:
                line.under_way -= 1
                if not line.under_way:
                    del self._lines[line.kind]
                return
            sender = most_patient(batch)
            sender.batch = batch
        sender.wake()
