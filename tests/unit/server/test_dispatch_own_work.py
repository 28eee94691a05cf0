"""What the server does by itself at the device, and what must not end in the middle."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError

import pytest

from recollect_server.application.dispatch import Dispatcher, Job
from recollect_server.domain.errors import DeadlineExceededError
from recollect_server.domain.limits import Limits
from recollect_server.domain.steps import Steps, in_one_step, kept
from tests.unit.server.gate import PATIENCE_S, Gate, noted


def test_the_servers_own_work_takes_no_callers_place() -> None:
    """What the server does for one tenant has another's calls refused, or the tenant's own."""
    dispatcher = Dispatcher(Limits(calls_waiting_max=4))
    gate = Gate(dispatcher)
    own = [dispatcher.submit(Job("a", in_one_step(lambda: 1), 7, is_refusable=False)) for _ in range(20)]
    assert dispatcher.queued()["a"] == (0, 140)
    calls = [
        dispatcher.submit(Job(tenant, in_one_step(lambda: 2), 7, calls_queued_max=1)) for tenant in ("a", "b")
    ]
    assert own[3].cancel()
    gate.open()
    assert [call.result(PATIENCE_S) for call in calls] == [2, 2]
    dispatcher.drain()
    assert dispatcher.queued() == {}


def test_the_servers_own_work_leaves_a_tenant_its_weight() -> None:
    """Who deletes a namespace has the smallest share of the device for the calls that are under way."""
    dispatcher, seen = Dispatcher(Limits()), list[str]()
    gate = Gate(dispatcher)
    calls = [
        dispatcher.submit(Job(tenant, noted(seen, tenant, steps=20, work=10**10), 10**10, weight=20))
        for tenant in ("a", "b")
    ]
    own = dispatcher.submit(Job("a", in_one_step(lambda: None), 1, is_refusable=False, lane="deleted"))
    gate.open()
    for call in calls:
        call.result(PATIENCE_S)
    own.result(PATIENCE_S)
    assert 8 <= seen[:20].count("a") <= 12
    dispatcher.drain()


@pytest.mark.parametrize("why", ["cancelled", "late"])
def test_what_must_not_end_in_the_middle_does_not(why: str) -> None:
    """Half of an eviction is done, or a bank is moved again and again, because callers leave meanwhile."""
    dispatcher, seen = Dispatcher(Limits()), list[str]()
    may_go_on, is_there = threading.Event(), threading.Event()

    def whole() -> Steps[None]:
        yield 0
        is_there.set()
        may_go_on.wait(PATIENCE_S)
        for _ in range(3):
            seen.append("part")
            yield 10**12

    def steps() -> Steps[None]:
        yield from kept(whole())
        yield 0
        seen.append("beyond")

    deadline_s = time.monotonic() + 0.2 if why == "late" else None
    future = dispatcher.submit(Job("t", steps(), 1, deadline_s=deadline_s))
    assert is_there.wait(PATIENCE_S)
    if deadline_s is None:
        assert future.cancel()
    else:
        time.sleep(max(0.0, deadline_s - time.monotonic()) + 0.01)
    may_go_on.set()
    with pytest.raises(CancelledError if why == "cancelled" else DeadlineExceededError):
        future.result(PATIENCE_S)
    dispatcher.drain()
    assert seen == ["part"] * 3
    assert dispatcher.queued() == {}
