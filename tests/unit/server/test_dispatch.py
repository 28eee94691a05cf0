"""The device's one thread: order, refusals, deadlines, calls given up. With threads, and without times."""

from __future__ import annotations

import threading
import time
import weakref
from concurrent.futures import CancelledError, Future
from concurrent.futures import wait as wait_for
from functools import partial

import pytest

from recollect_server.application import dispatch
from recollect_server.application.dispatch import Dispatcher, Job
from recollect_server.domain.errors import (
    DeadlineExceededError,
    DrainingError,
    InvalidArgumentError,
    OverloadedError,
    QuotaExceededError,
)
from recollect_server.domain.limits import Limits
from recollect_server.domain.steps import UNBOUNDED, Steps, in_one_step
from tests.unit.server.gate import PATIENCE_S, Gate, noted


@pytest.fixture
def dispatcher() -> Dispatcher:
    """With room for four calls."""
    return Dispatcher(Limits(calls_waiting_max=4))


def test_calls_of_a_tenant_run_in_order_on_one_thread() -> None:
    """GPU resources are used by two threads, or a later call overtakes an earlier one."""
    dispatcher, seen = Dispatcher(Limits()), list[tuple[int, str]]()

    def note(number: int) -> None:
        seen.append((number, threading.current_thread().name))

    futures = [dispatcher.submit(Job("t", in_one_step(partial(note, number)), 1)) for number in range(20)]
    for future in futures:
        future.result(PATIENCE_S)
    assert seen == [(number, "recollect-device") for number in range(20)]
    dispatcher.drain()


@pytest.mark.parametrize("fair", [True, False])
def test_a_small_call_passes_a_heavy_one_of_another_tenant(fair: bool) -> None:
    """A tenant's flood holds up another's small call (and must, with the fair order switched off)."""
    dispatcher, seen = Dispatcher(Limits(), fair=fair), list[str]()
    gate = Gate(dispatcher)
    heavy = [
        dispatcher.submit(Job("flood", noted(seen, f"heavy {number}", steps=30, work=10**10), 3 * 10**11))
        for number in range(2)
    ]
    light = dispatcher.submit(Job("small", noted(seen, "light", steps=1, work=1000), 1000))
    gate.open()
    assert light.result(PATIENCE_S) == "light"
    assert [call.result(PATIENCE_S) for call in heavy] == ["heavy 0", "heavy 1"]
    before = seen.index("light")
    assert before <= 2 if fair else before == 60
    assert [name for name in seen if name != "light"] == ["heavy 0"] * 30 + ["heavy 1"] * 30
    dispatcher.drain()


def test_a_turn_is_bounded_beside_others_and_steps_fit_into_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is granted more than a turn, or so little that tiles become slivers."""
    monkeypatch.setattr(dispatch, "SHARED_FOR_S", PATIENCE_S)
    dispatcher, granted = Dispatcher(Limits()), list[int]()
    Gate(dispatcher).open()

    def ask(tenant_budgets: list[int], steps: int) -> Steps[None]:
        left = yield 0
        for _ in range(steps):
            tenant_budgets.append(left)
            left = yield left // 2
        return None

    dispatcher.submit(Job("a", ask(granted, 40), 1)).result(PATIENCE_S)
    assert 0 < max(granted) < UNBOUNDED
    assert min(granted) > 0
    dispatcher.drain()
    unfair, whole = Dispatcher(Limits(), fair=False), list[int]()
    unfair.submit(Job("a", ask(whole, 1), 1)).result(PATIENCE_S)
    assert whole[0] > UNBOUNDED // 2
    unfair.drain()


@pytest.mark.parametrize("fair", [True, False])
def test_a_turn_ends_though_its_work_seems_little(fair: bool) -> None:
    """Steps that take longer than is estimated, as to find new memory, hold up the calls of all others."""
    dispatcher, seen = Dispatcher(Limits(), fair=fair), list[str]()
    gate = Gate(dispatcher)

    def slowly() -> Steps[None]:
        yield 0
        for _ in range(20):
            time.sleep(2 * dispatch.SHARED_TURN_S)
            seen.append("step")
            yield 1
        return None

    slow = dispatcher.submit(Job("a", slowly(), 20))
    light = dispatcher.submit(Job("b", noted(seen, "light", steps=1, work=1), 1))
    gate.open()
    for each in (slow, light):
        each.result(PATIENCE_S)
    before = seen.index("light")
    assert before <= 2 if fair else before == 20
    dispatcher.drain()


def test_a_full_queue_refuses(dispatcher: Dispatcher) -> None:
    """Calls pile up without bound instead of being told to come back."""
    gate = Gate(dispatcher)
    waiting = [dispatcher.submit(Job(f"t{n}", in_one_step(lambda: None), 1)) for n in range(4)]
    with pytest.raises(OverloadedError) as caught:
        dispatcher.submit(Job("x", in_one_step(lambda: None), 1))
    assert caught.value.retry_after_s is not None
    assert 0.05 <= caught.value.retry_after_s <= 5
    own = dispatcher.submit(Job("x", in_one_step(lambda: 3), 1, is_refusable=False))
    assert waiting[0].cancel()  # its caller gave up: that makes room
    assert waiting[1].cancel()
    again = dispatcher.submit(Job("x", in_one_step(lambda: 1), 1))
    gate.open()
    assert (own.result(PATIENCE_S), again.result(PATIENCE_S)) == (3, 1)
    dispatcher.drain()
    assert dispatcher.queued() == {}


def test_a_tenants_queue_is_bounded_by_its_quota(dispatcher: Dispatcher) -> None:
    """One tenant's calls take all places, or another's count against its quota."""
    gate = Gate(dispatcher, tenant="a")
    for _ in range(2):
        dispatcher.submit(Job("a", in_one_step(lambda: None), 7, calls_queued_max=2))
    with pytest.raises(QuotaExceededError) as caught:
        dispatcher.submit(Job("a", in_one_step(lambda: None), 7, calls_queued_max=2))
    assert caught.value.reason == "QUOTA_CALLS_QUEUED"
    assert caught.value.retry_after_s
    dispatcher.submit(Job("b", in_one_step(lambda: None), 5, calls_queued_max=1))
    assert dispatcher.queued() == {"a": (2, 14), "b": (1, 5)}
    gate.open()
    dispatcher.drain()
    assert dispatcher.queued() == {}


def test_nobody_works_for_a_caller_who_left() -> None:
    """Work whose deadline has passed is done all the same."""
    dispatcher, done = Dispatcher(Limits()), list[int]()
    gate = Gate(dispatcher)
    with pytest.raises(DeadlineExceededError):
        dispatcher.submit(Job("t", in_one_step(lambda: done.append(0)), 1, deadline_s=time.monotonic() - 1))
    deadline_s = time.monotonic() + 0.05
    late = Job("t", in_one_step(lambda: done.append(1)), 0, deadline_s=deadline_s)
    timely = Job("t", in_one_step(lambda: done.append(2)), 0, deadline_s=time.monotonic() + PATIENCE_S)
    futures = [dispatcher.submit(late), dispatcher.submit(timely)]
    while time.monotonic() <= deadline_s:
        time.sleep(0.01)
    gate.open()
    with pytest.raises(DeadlineExceededError, match="waited"):
        futures[0].result(PATIENCE_S)
    futures[1].result(PATIENCE_S)
    assert done == [2]
    assert late.worked_s is None
    assert timely.waited_s is not None
    assert timely.worked_s is not None
    dispatcher.drain()


class Endless:
    """Steps that never end by themselves, and notice that they were closed."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self.closed = threading.Event()

    def steps(self) -> Steps[None]:
        """Runs until closed."""
        try:
            yield 0
            self.began.set()
            while True:
                time.sleep(0.001)
                yield 1000
        finally:
            self.closed.set()


def test_a_call_at_work_ends_when_its_caller_leaves(dispatcher: Dispatcher) -> None:
    """A call that was cancelled, or whose deadline passed, is worked on to its end."""
    cancelled, late = Endless(), Endless()
    future = dispatcher.submit(Job("a", cancelled.steps(), 1))
    assert cancelled.began.wait(PATIENCE_S)
    assert future.cancel()
    assert cancelled.closed.wait(PATIENCE_S)
    with pytest.raises(CancelledError):
        future.result(PATIENCE_S)
    future = dispatcher.submit(Job("a", late.steps(), 1, deadline_s=time.monotonic() + 0.1))
    with pytest.raises(DeadlineExceededError, match="worked"):
        future.result(PATIENCE_S)
    assert late.closed.wait(PATIENCE_S)
    dispatcher.drain()
    assert dispatcher.queued() == {}


def test_what_cannot_be_done_in_time_is_refused_at_once(dispatcher: Dispatcher) -> None:
    """A caller waits for an answer that cannot come before its deadline."""
    gate = Gate(dispatcher, tenant="a", cost=10**14)
    soon = time.monotonic() + 5
    with pytest.raises(OverloadedError, match="deadline"):
        dispatcher.submit(Job("a", in_one_step(lambda: None), 1, deadline_s=soon))
    # Its turn comes between the steps of the other's.
    other = dispatcher.submit(Job("b", in_one_step(lambda: 1), 1, deadline_s=time.monotonic() + PATIENCE_S))
    gate.open()
    assert other.result(PATIENCE_S) == 1
    dispatcher.drain()


def test_an_idle_device_refuses_nobody() -> None:
    """An estimate that is off keeps a call from a device that has nothing else to do."""
    dispatcher = Dispatcher(Limits())
    job = Job("a", in_one_step(lambda: 1), 10**18, deadline_s=time.monotonic() + PATIENCE_S)
    assert dispatcher.submit(job).result(PATIENCE_S) == 1
    dispatcher.drain()


def test_drain_finishes_what_was_queued() -> None:
    """A shutdown drops calls that were accepted, or accepts new ones."""
    dispatcher = Dispatcher(Limits())
    gate = Gate(dispatcher)
    queued = [
        dispatcher.submit(Job(str(number % 2), in_one_step(partial(int, number)), 1)) for number in range(5)
    ]
    dispatcher.start_draining()
    with pytest.raises(DrainingError) as refused:
        dispatcher.submit(Job("t", in_one_step(lambda: None), 1))
    assert refused.value.retry_after_s
    drained = threading.Thread(target=dispatcher.drain)
    drained.start()
    gate.open()
    drained.join(PATIENCE_S)
    assert [future.result(PATIENCE_S) for future in queued] == list(range(5))
    dispatcher.drain()


@pytest.mark.parametrize("when", ["first", "later"])
def test_a_failure_is_its_callers_alone(dispatcher: Dispatcher, when: str) -> None:
    """One call's exception ends the device's thread, or the tenant's other calls."""

    def fail() -> Steps[float]:
        if when == "later":
            yield 5
        return 1 / int(when == "never")

    with pytest.raises(ZeroDivisionError):
        dispatcher.submit(Job("a", fail(), 1)).result(PATIENCE_S)
    assert dispatcher.submit(Job("a", in_one_step(lambda: 7), 1)).result(PATIENCE_S) == 7
    dispatcher.drain()


def test_cancelling_at_any_moment_loses_no_other_call() -> None:
    """A call is cancelled just when its turn comes, and another is taken out in its place."""
    dispatcher = Dispatcher(Limits())
    kept: list[Future[int]] = []
    for number in range(2000):
        doomed = dispatcher.submit(Job("a", in_one_step(int), 1))
        kept.append(dispatcher.submit(Job("a", in_one_step(partial(int, number)), 1)))
        doomed.cancel()
        if number % 50 == 49:
            wait_for(kept, PATIENCE_S)
    assert [future.result(PATIENCE_S) for future in kept] == list(range(2000))
    dispatcher.drain()
    assert dispatcher.queued() == {}


def test_times_are_known_when_the_answer_is(dispatcher: Dispatcher) -> None:
    """Who reads how long a call waited and worked when it has its answer finds nothing yet."""
    for _ in range(200):
        job = Job("a", in_one_step(int), 1)
        dispatcher.submit(job).result(PATIENCE_S)
        assert job.waited_s is not None
        assert job.worked_s is not None
    dispatcher.drain()


def test_an_add_is_answered_while_another_namespace_is_searched(dispatcher: Dispatcher) -> None:
    """An add waits until a long search of another namespace of its tenant is over."""
    added = threading.Event()

    def search() -> Steps[bool]:
        """Goes on until the add is answered."""
        yield 0
        end = time.monotonic() + PATIENCE_S
        while not added.is_set() and time.monotonic() < end:
            yield 1000
        return added.is_set()

    searched = dispatcher.submit(Job("t", search(), 1, lane="one"))
    dispatcher.submit(Job("t", in_one_step(lambda: None), 1, lane="two")).result(PATIENCE_S)
    added.set()
    assert searched.result(PATIENCE_S)
    dispatcher.drain()
    assert dispatcher.queued() == {}


def test_calls_of_a_lane_never_run_between_anothers_steps() -> None:
    """What a namespace's call found in its first step is changed by another before its last."""
    dispatcher, seen = Dispatcher(Limits()), list[str]()
    gate = Gate(dispatcher)
    calls = [
        dispatcher.submit(Job("t", noted(seen, f"{lane}{number}", steps=5, work=10**9), 1, lane=lane))
        for number in range(4)
        for lane in "xyz"
    ]
    gate.open()
    for call in calls:
        call.result(PATIENCE_S)
    for lane in "xyz":
        own = [name for name in seen if name.startswith(lane)]
        assert own == [f"{lane}{number}" for number in range(4) for _ in range(5)]
    dispatcher.drain()


class Large:
    """What can be watched, in place of arrays of megabytes."""


@pytest.mark.usefixtures("without_garbage_collection")
@pytest.mark.parametrize("any_thread", [True, False])
def test_an_answer_goes_with_the_last_who_wants_it(any_thread: bool) -> None:
    """Calls and answers hold each other until garbage is collected: a server swells by each large one."""
    dispatcher = Dispatcher(Limits(), any_thread=any_thread)
    future = dispatcher.submit(Job("t", in_one_step(Large), 1 if any_thread else 10**12))
    watched = weakref.ref(future.result(PATIENCE_S))
    dispatcher.drain()
    del future
    assert watched() is None


@pytest.mark.usefixtures("without_garbage_collection")
@pytest.mark.parametrize("any_thread", [True, False])
def test_a_refused_message_goes_with_its_refusal(any_thread: bool) -> None:
    """Of each call that is refused the whole message stays, until garbage is collected."""
    dispatcher, watched = Dispatcher(Limits(), any_thread=any_thread), list[weakref.ref[Large]]()

    def refuse() -> None:
        message = Large()
        watched.append(weakref.ref(message))
        raise InvalidArgumentError("keys", "has NaN")

    def ask() -> None:
        future = dispatcher.submit(Job("t", in_one_step(refuse), 1 if any_thread else 10**12))
        try:
            future.result(PATIENCE_S)
        finally:
            del future

    with pytest.raises(InvalidArgumentError) as refused:
        ask()
    dispatcher.drain()
    assert refused.value.argument == "keys"
    assert watched[0]() is None
