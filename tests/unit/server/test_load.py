"""How long a new call would wait, and who is refused for it."""

from __future__ import annotations

import pytest

from recollect_server.application.load import Load
from recollect_server.domain.errors import OverloadedError
from recollect_server.domain.limits import Limits


def test_lanes_have_equal_parts_of_their_tenants_share() -> None:
    """An add is refused for want of time because of a long search of another namespace."""
    load = Load(Limits(), fair=True)
    second = int(load.rate)
    load.queued("t", 100 * second, weight=1, lane="one")
    assert load.done_after_s("t", second, weight=1, now_s=0.0, lane="two") == pytest.approx(2, rel=1e-3)
    assert load.done_after_s("t", second, weight=1, now_s=0.0, lane="one") == pytest.approx(101, rel=1e-3)
    load.queued("u", second, weight=1, lane="one")
    assert load.done_after_s("t", second, weight=1, now_s=0.0, lane="two") == pytest.approx(4, rel=1e-3)
    load.began("t")
    load.ended("t", lane="one")
    assert load.by_tenant() == {"u": (1, second)}
    assert load.done_after_s("t", second, weight=1, now_s=0.0, lane="one") == pytest.approx(2, rel=1e-3)


def test_a_wait_is_that_of_a_fair_share() -> None:
    """A light tenant is told to wait for a flood that it need not wait for, or a heavy one too short."""
    load = Load(Limits(), fair=True)
    load.queued("flood", int(load.rate) * 100, weight=1)
    load.queued("light", int(load.rate) * 1, weight=1)
    assert load.done_after_s("new", 0, weight=1, now_s=0.0) == 0
    assert load.done_after_s("light", 0, weight=1, now_s=0.0) == pytest.approx(2, rel=1e-3)
    assert load.done_after_s("flood", 0, weight=1, now_s=0.0) == pytest.approx(101, rel=1e-3)
    line = Load(Limits(), fair=False)
    line.queued("flood", int(line.rate) * 100, weight=1)
    assert line.done_after_s("new", 0, weight=1, now_s=0.0) == pytest.approx(100, rel=1e-3)


def test_a_call_is_done_at_the_speed_of_its_share() -> None:
    """Calls are taken as if they had the device to themselves, and under load most of them are late."""
    load, second = Load(Limits(), fair=True), int(Load(Limits(), fair=True).rate)
    for number in range(9):
        load.queued(f"t{number}", 100 * second, weight=1)
    assert load.done_after_s("new", second, weight=1, now_s=0.0) == pytest.approx(10, rel=1e-3)
    assert load.done_after_s("new", second, weight=9, now_s=0.0) == pytest.approx(2, rel=1e-3)
    assert load.done_after_s("t0", second, weight=1, now_s=0.0) == pytest.approx(901, rel=1e-2)
    with pytest.raises(OverloadedError):
        load.require_room("new", second, weight=1, calls_queued_max=10, remaining_s=9.0, now_s=0.0)
    load.require_room("new", second, weight=1, calls_queued_max=10, remaining_s=60.0, now_s=0.0)


def test_in_a_crowd_others_are_expected_to_come() -> None:
    """Under load a call is taken as if only those were there that have something under way just now."""
    load = Load(Limits(), fair=True)
    second = int(load.rate)
    load.queued("t0", second, weight=1)

    def ask(tenant: str, *, remaining_s: float, now_s: float) -> None:
        load.require_room(tenant, second, weight=1, calls_queued_max=99, remaining_s=remaining_s, now_s=now_s)

    ask("t1", remaining_s=5.0, now_s=0.0)  # two seconds of work in all
    for number in range(1, 10):
        with pytest.raises(OverloadedError):
            ask(f"t{number}", remaining_s=0.5, now_s=0.1)
    with pytest.raises(OverloadedError):
        ask("t1", remaining_s=5.0, now_s=0.2)  # with nine that ask, nine seconds
    ask("t1", remaining_s=5.0, now_s=9.0)  # nobody has asked for long
    assert load._demand.weights == 1


def test_the_rate_follows_what_was_measured() -> None:
    """Budgets and hints are those of another machine."""
    load = Load(Limits(), fair=True)
    for _ in range(5000):
        load.measured(3_000_000, 0.001)
    assert load.rate == pytest.approx(3e9, rel=0.05)


def test_counts_return_to_nothing() -> None:
    """Costs of calls that are over add up, and after a day every call is refused."""
    load = Load(Limits(), fair=True)
    for weight in (1, 5, 2):
        load.queued("a", 100, weight=weight)
    for _ in range(3):
        load.began("a")
        load.worked("a", 40)
        load.ended("a")
    assert load.by_tenant() == {}
    load.queued("b", 10, weight=1)
    assert load.by_tenant() == {"b": (1, 10)}
    assert load.done_after_s("b", 0, weight=1, now_s=0.0) == pytest.approx(10 / load.rate)
