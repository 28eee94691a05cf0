"""One dispatcher owns a device; calls wait for their turns at it in fair order, in a bounded queue."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from recollect_server.application.fair_queue import FairQueue
from recollect_server.application.load import Load
from recollect_server.domain.errors import DeadlineExceededError, DrainingError, RecollectError
from recollect_server.domain.limits import Limits
from recollect_server.domain.steps import UNBOUNDED, Kept, Steps
from recollect_server.domain.work import CALL

Answer = TypeVar("Answer")
Answer_co = TypeVar("Answer_co", covariant=True)

SHARED_TURN_S, LONE_TURN_S = 0.001, 0.008
"""A turn lasts about so long, and who comes in between waits that long at most: beside another lane that
had work within `SHARED_FOR_S`, or alone. Longer ones are hardly more work for the time (measured; ADR 10)."""

SHARED_FOR_S = 1.0

SHARED_HERE_S, LONE_HERE_S = 0.002, 0.004
"""What takes no longer is done by the thread that brings it, if the device is idle: to hand it to another
thread and to wake up twice for it costs as much as a decoding step. Beside another lane, or alone: who comes
in meanwhile is read later, and would have waited for such a turn as long."""

DRAINING_RETRY_S = 1.0


@dataclass(slots=True, eq=False)
class Job(Generic[Answer_co]):
    """A call for the device.

    Attributes:
        tenant: Whose it is.
        steps: Taken one after the other on the device's thread, and closed if they are not to be ended.
        cost: Of all of them, estimated, in multiply-adds.
        deadline_s: When its caller stops waiting, in `time.monotonic()` seconds; None: never.
        weight: Of the tenant; None: as it is.
        calls_queued_max: Most calls of the tenant that may wait, this one included.
        is_refusable: False for the server's own work, which is queued whatever the load, and is none of the
            calls that wait.
        may_run_here: False for what the device's own thread has to do, however short it seems.
        lane: The namespace: its calls run in the order they came, one at a time.
        waited_s: From when it was queued to its first step; None if it never came to that.
        worked_s: In its steps; None if it had none.
    """

    tenant: str
    steps: Steps[Answer_co]
    cost: int
    deadline_s: float | None = None
    weight: int | None = None
    calls_queued_max: int = 2**31
    is_refusable: bool = True
    may_run_here: bool = True
    lane: str = ""
    waited_s: float | None = None
    worked_s: float | None = None


class _Call(Generic[Answer_co]):
    """A job under way."""

    __slots__ = (
        "__weakref__",
        "_error",
        "_result",
        "future",
        "has_begun",
        "has_ended",
        "has_stepped",
        "is_given_up",
        "is_kept",
        "job",
        "left",
        "queued_at_s",
    )

    def __init__(self, job: Job[Answer_co], queued_at_s: float) -> None:
        self.job = job
        self.future: Future[Answer_co] = Future()
        self.queued_at_s = queued_at_s
        self.is_given_up = False  # by its caller, who cancelled the future
        self.has_begun = False  # it has had a turn, or has it now
        self.has_stepped = False  # it was still wanted then
        self.is_kept = False  # it has paused where it must not end
        self.has_ended = False
        self.left = job.cost  # of what was estimated
        self._result: list[Answer_co] = []
        self._error: BaseException | None = None

    def turn(self, budget: int, *, seconds: float) -> int:
        """Takes steps up to a budget, or until they have taken so long; returns the work done."""
        steps, done, until_s = self.job.steps, 0, time.monotonic() + seconds
        # A sliver of a budget would make a sliver of a tile: it is no step of its own.
        least = budget // 4
        try:
            if not self._is_wanted():
                return 0
            if not self.has_stepped:
                self.has_stepped = True
                done = CALL + self._took(next(steps))
            # Work is estimated. To find new memory, for one, may take a system many times as long.
            while done + least <= budget and time.monotonic() < until_s and self._is_wanted():
                done += self._took(steps.send(budget - done))
        except StopIteration as finished:
            self._result.append(finished.value)
            self.has_ended = True
        except RecollectError as refusal:
            # Nobody asks where it was raised, and the frames of that hold the message and who has the error.
            self._error = refusal.with_traceback(None)
            self.has_ended = True
        except BaseException as error:
            self._error = error
            self.has_ended = True
        return done

    def _took(self, work: int) -> int:
        self.is_kept = isinstance(work, Kept)
        return work

    def deliver(self) -> None:
        """Hands over the answer, unless nobody wants it any more."""
        future, error = self.future, self._error
        # The traceback of a defect holds this call, which must not hold the defect, nor who has it.
        del self.future
        self._error = None
        if not future.set_running_or_notify_cancel():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(self._result.pop())

    def _is_wanted(self) -> bool:
        """False if its caller is gone or its deadline has passed; then it is over, and has done nothing."""
        if self.is_kept:
            return True
        deadline_s = self.job.deadline_s
        if deadline_s is not None and time.monotonic() > deadline_s:
            when = "the device worked on the call" if self.has_stepped else "the call waited for the device"
            self._error = DeadlineExceededError(f"the deadline passed while {when}")
        elif not self.is_given_up:
            return True
        self.has_ended = True
        self.job.steps.close()
        return False


class Dispatcher:
    """Runs the steps of calls, turn by turn: on a thread of its own, or on the one that brings a small call.

    One turn at a time, so nothing behind it needs a lock. The calls of one lane (of a
    tenant's namespace) run in the order they came, one at a time; others take turns with them.

    Args:
        limits: `calls_waiting_max` bounds the queue.
        fair: False runs each call whole, in the order they came.
        any_thread: Whether the device may be used by one thread after the other: small calls that find it
            idle are then done by the thread that submits them, before `submit` returns.
    """

    def __init__(self, limits: Limits, *, fair: bool = True, any_thread: bool = False) -> None:
        self._fair = fair
        self._any_thread = any_thread
        self._is_lent = False  # to a thread that submitted a small call
        self._lock = threading.Lock()  # of all that follows
        self._ready = threading.Condition(self._lock)
        self._queue: FairQueue[_Call[object]] = FairQueue(fair=fair)
        self._load = Load(limits, fair=fair)
        self._draining = False
        self._last_lane = ("", "")
        self._shared_until_s = 0.0
        self._thread = threading.Thread(target=self._serve, name="recollect-device", daemon=True)
        self._thread.start()

    def submit(self, job: Job[Answer]) -> Future[Answer]:
        """Queues a call.

        Returns:
            Its answer to come, or a `DeadlineExceededError`, or what its steps raise. Cancelling it takes
            the call out of the queue, or ends it at its next pause.

        Raises:
            DrainingError: The server is shutting down.
            DeadlineExceededError: The deadline has passed already.
            QuotaExceededError: The tenant has as many calls waiting as it may.
            OverloadedError: Too many calls wait, or too much work for the job's deadline.
        """
        now_s = time.monotonic()
        call = _Call(job, now_s)
        future = call.future
        with self._lock:
            if self._draining:
                raise DrainingError("the server is shutting down", retry_after_s=DRAINING_RETRY_S)
            if job.is_refusable:
                self._require_room(job, now_s)
            if (job.tenant, job.lane) != self._last_lane:
                self._last_lane = job.tenant, job.lane
                self._shared_until_s = now_s + SHARED_FOR_S
            here_s = self._of_shared(SHARED_HERE_S, LONE_HERE_S)
            here = self._work_in(here_s)
            fits = job.cost <= here and self._may_be_here(job)
            self._load.queued(job.tenant, job.cost, weight=job.weight, lane=job.lane, waits=job.is_refusable)
            self._queue.push(job.tenant, call, lane=job.lane, weight=job.weight)
            self._is_lent = fits
            if fits:
                self._take()
            else:
                self._ready.notify()
        if fits:
            # Room beyond the estimate: a call that is nearly done is not handed over for its last step.
            self._turn(call, 2 * here, seconds=2 * here_s)
        if not call.has_ended:
            # Not the call itself: it has the future, and each would hold the other, and the answer, for long.
            future.add_done_callback(partial(self._forget, weakref.ref(call)))
        return future

    def queued(self) -> Mapping[str, tuple[int, int]]:
        """For each tenant with work: calls that wait for a first turn, and the cost of all that is left."""
        with self._lock:
            return self._load.by_tenant()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or is under way, as far as a thread can tell that does not own the device."""
        return self._load.is_idle

    def start_draining(self) -> None:
        """Takes no new work."""
        with self._lock:
            self._draining = True
            self._ready.notify()

    def drain(self) -> None:
        """Takes no new work; returns when what was queued is done."""
        self.start_draining()
        self._thread.join()

    def _require_room(self, job: Job[Answer], now_s: float) -> None:
        remaining_s = None if job.deadline_s is None else job.deadline_s - now_s
        if remaining_s is not None and remaining_s <= 0:
            raise DeadlineExceededError("the deadline passed before the call was queued")
        self._load.require_room(
            job.tenant,
            job.cost,
            weight=job.weight or 1,
            calls_queued_max=job.calls_queued_max,
            remaining_s=remaining_s,
            now_s=now_s,
            lane=job.lane,
        )

    def _forget(self, waiting: weakref.ref[_Call[Answer]], future: Future[Answer]) -> None:
        """Its caller gave it up: it makes room at once if it has not begun, otherwise at its next pause."""
        call = waiting()
        if call is None or not future.cancelled():
            return
        call.is_given_up = True
        with self._lock:
            if not call.has_begun and self._queue.remove(call.job.tenant, call, lane=call.job.lane):
                self._load.began(call.job.tenant, waited=call.job.is_refusable)
                self._end(call)

    def _serve(self) -> None:
        while (call := self._next()) is not None:
            seconds = self._of_shared(SHARED_TURN_S, LONE_TURN_S) if self._fair else math.inf
            self._turn(call, self._work_in(seconds) if self._fair else UNBOUNDED, seconds=seconds)
            del call  # not to keep its arrays while waiting for the next

    def _turn(self, call: _Call[Answer], budget: int, *, seconds: float) -> None:
        """On the thread that has the device."""
        begun_s = time.monotonic()
        work = call.turn(budget, seconds=seconds)
        seconds = time.monotonic() - begun_s
        if call.has_stepped:
            call.job.worked_s = (call.job.worked_s or 0.0) + seconds
        if call.has_ended and call.job.is_refusable:
            call.deliver()
        with self._lock:
            self._queue.give_back(work, ended=call.has_ended)
            self._load.measured(work, seconds)
            behind = min(work, call.left)
            call.left -= behind
            self._load.worked(call.job.tenant, behind, lane=call.job.lane)
            if call.has_ended:
                self._end(call)
            if self._is_lent:
                self._is_lent = False
                if self._draining or not self._load.is_idle:
                    self._ready.notify()
        if call.has_ended and not call.job.is_refusable:
            call.deliver()  # who hears of it may look next whether the device is idle

    def _next(self) -> _Call[object] | None:
        """For the device's own thread: the call whose turn it is; None if there will be no more."""
        with self._lock:
            while self._is_lent or (call := self._take()) is None:
                if self._draining and not self._is_lent:
                    return None
                self._ready.wait()
            return call

    def _take(self) -> _Call[object] | None:
        call = self._queue.take()
        if call is not None and not call.has_begun:
            call.has_begun = True
            call.job.waited_s = time.monotonic() - call.queued_at_s
            self._load.began(call.job.tenant, waited=call.job.is_refusable)
        return call

    def _may_be_here(self, job: Job[Answer]) -> bool:
        """Whether the submitting thread may do it: nothing is overtaken."""
        is_free = self._any_thread and self._fair and not self._is_lent and self._load.is_idle
        return is_free and job.may_run_here

    def _of_shared(self, shared_s: float, lone_s: float) -> float:
        """The one or the other: whether another lane had work lately."""
        return shared_s if time.monotonic() < self._shared_until_s else lone_s

    def _work_in(self, seconds: float) -> int:
        return int(seconds * self._load.rate)

    def _end(self, call: _Call[Answer]) -> None:
        self._load.worked(call.job.tenant, call.left, lane=call.job.lane)
        self._load.ended(call.job.tenant, lane=call.job.lane)
