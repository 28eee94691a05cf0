"""Small calls that find the device idle are done by the thread that brings them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import pytest

from recollect_server.application import dispatch
from recollect_server.application.dispatch import LONE_HERE_S, SHARED_HERE_S, Dispatcher, Job
from recollect_server.domain.limits import Limits
from recollect_server.domain.steps import Steps, in_one_step
from tests.unit.server.gate import PATIENCE_S, Gate


def thread_name() -> str:
    """Of the thread that runs it."""
    return threading.current_thread().name


def test_a_small_call_is_done_where_it_comes_in() -> None:
    """A decoding step pays for two wakes though the device is idle; or the times of such a call are lost."""
    dispatcher = Dispatcher(Limits(), any_thread=True)
    job = Job("t", in_one_step(thread_name), 1)
    answer = dispatcher.submit(job)
    assert answer.done()
    assert answer.result() == thread_name()
    assert job.waited_s is not None
    assert job.worked_s is not None
    assert dispatcher.queued() == {}
    dispatcher.drain()


@pytest.mark.parametrize("why", ["heavy", "unfair", "device's own thread", "its own wish"])
def test_other_calls_go_to_the_devices_thread(why: str) -> None:
    """A heavy call holds up whoever brings it, or a card is used by two threads."""
    dispatcher = Dispatcher(Limits(), fair=why != "unfair", any_thread=why != "device's own thread")
    cost = 10**12 if why == "heavy" else 1
    job = Job("t", in_one_step(thread_name), cost, may_run_here=why != "its own wish")
    assert dispatcher.submit(job).result(PATIENCE_S) == "recollect-device"
    dispatcher.drain()


def test_a_small_call_overtakes_nobody() -> None:
    """A small call that is done where it comes in runs beside another, or before one that waits."""
    dispatcher = Dispatcher(Limits(), any_thread=True)
    gate = Gate(dispatcher, cost=10**12)
    second = dispatcher.submit(Job("t", in_one_step(thread_name), 1))
    assert not second.done()
    gate.open()
    assert second.result(PATIENCE_S) == "recollect-device"
    dispatcher.drain()


def test_what_is_just_small_enough_ends_where_it_comes_in() -> None:
    """A call that uses up its turn is handed over for its last step, which has nothing left to do."""
    dispatcher = Dispatcher(Limits(), any_thread=True)
    cost = dispatcher._work_in(SHARED_HERE_S)

    def work() -> Steps[str]:
        yield 0
        yield cost // 2
        yield cost // 2
        return thread_name()

    answer = dispatcher.submit(Job("t", work(), cost))
    assert answer.done()
    assert answer.result() == thread_name()
    dispatcher.drain()


def test_a_lane_that_is_alone_may_be_longer_where_it_comes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A streaming search is handed to another thread though nobody else is there, or holds others up."""
    monkeypatch.setattr(dispatch, "SHARED_FOR_S", 0.2)
    dispatcher = Dispatcher(Limits(), any_thread=True)
    cost = dispatcher._work_in((SHARED_HERE_S + LONE_HERE_S) / 2)

    def ran(lane: str) -> str:
        return dispatcher.submit(Job("t", in_one_step(thread_name), cost, lane=lane)).result(PATIENCE_S)

    here = thread_name()
    assert ran("a") == "recollect-device"  # it has only just come
    time.sleep(0.3)
    assert ran("a") == here
    assert ran("b") == "recollect-device"
    assert ran("a") == "recollect-device"
    dispatcher.drain()


def test_what_was_taken_for_small_goes_on_at_the_devices_thread() -> None:
    """An estimate that is far off holds up the event loop for as long as the call takes."""
    dispatcher, seen = Dispatcher(Limits(), any_thread=True), list[str]()

    def longer() -> Steps[int]:
        yield 0
        for _ in range(50):
            seen.append(thread_name())
            yield 10**9
        return 7

    assert dispatcher.submit(Job("t", longer(), 1)).result(PATIENCE_S) == 7
    assert seen[0] == thread_name()
    assert seen.count(thread_name()) <= 2
    assert seen[-1] == "recollect-device"
    dispatcher.drain()


def test_threads_that_bring_small_calls_take_turns() -> None:
    """Two threads use the device at once, or a call is lost when they meet."""
    dispatcher, inside, together = Dispatcher(Limits(), any_thread=True), list[int](), list[int]()

    def work() -> int:
        inside.append(1)
        together.append(len(inside))
        time.sleep(0)
        inside.pop()
        return 1

    def bring() -> None:
        answers.extend(dispatcher.submit(Job("t", in_one_step(work), 1)) for _ in range(200))

    answers: list[Future[int]] = []
    threads = [threading.Thread(target=bring) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sum(answer.result(PATIENCE_S) for answer in answers) == 800
    assert max(together) == 1
    dispatcher.drain()
    assert dispatcher.queued() == {}
