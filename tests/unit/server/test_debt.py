"""Background work takes turns with calls by the time that both take."""

from __future__ import annotations

import pytest

from recollect_server.application.debt import IDLE_S, SHARE, SLICE_S, SLICE_S_MIN, SPARE, Debt


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_work_waits_until_calls_have_had_their_share() -> None:
    """Calls wait for background work one after the other."""
    debt = Debt(monotonic=Clock())
    assert debt.is_due()
    debt.worked(0.006)
    assert not debt.is_due()
    debt.called(0.005 / SHARE)
    assert not debt.is_due()
    debt.called(0.002 / SHARE)
    assert debt.is_due()


def test_what_is_expected_counts_until_it_is_known() -> None:
    """A hundred banks begin while the first is still at work; or what is expected is paid twice."""
    debt = Debt(monotonic=Clock())
    debt.called(0.001)
    debt.worked(0.004)
    assert not debt.is_due()
    debt.worked(0.001 - 0.004)
    debt.called(0.0005 / SHARE)
    assert debt.is_due()


def test_a_long_call_earns_its_share() -> None:
    """Where each call takes a tenth of a second one slice runs beside it: lists take minutes to be made."""
    debt = Debt(monotonic=Clock())
    debt.worked(0.004)
    debt.called(0.1)
    slices = 0
    while debt.is_due():
        debt.worked(0.004)
        slices += 1
    assert slices == pytest.approx((0.1 * SHARE - 0.004) / 0.004, abs=2)


def test_calls_now_and_then_leave_time() -> None:
    """Lists are made for minutes on a device that is idle but for a small call every few milliseconds."""
    clock = Clock()
    debt = Debt(monotonic=clock)
    slices = 0
    for _ in range(1000):
        clock.now_s += 0.5 * IDLE_S
        debt.called(0.0001)
        if debt.is_due():
            debt.worked(0.004)
            slices += 1
    assert slices * 0.004 == pytest.approx(SPARE * 500 * IDLE_S, rel=0.05)


def test_calls_save_nothing_up() -> None:
    """After an hour of calls the next ones wait for an hour of work."""
    debt = Debt(monotonic=Clock())
    debt.worked(0.001)
    for _ in range(1000):
        debt.called(0.003)
    assert debt.is_due()
    debt.worked(0.006)
    assert not debt.is_due()


def test_an_idle_device_owes_nothing() -> None:
    """Lists of a bank that nobody calls now are never done; or the first call after it waits for all."""
    clock = Clock()
    debt = Debt(monotonic=clock)
    for _ in range(10):
        debt.worked(0.006)
        assert not debt.is_due()
        clock.now_s += 1.01 * IDLE_S
        assert debt.is_idle
        debt.forgive()
        assert debt.is_due()
    debt.called(0.0)
    debt.worked(0.012)
    assert not debt.is_idle
    assert not debt.is_due()


def test_slices_are_as_long_as_calls() -> None:
    """A decoding step that takes half a millisecond waits for four; or each begins a slice of no length."""
    debt = Debt(monotonic=Clock())
    assert debt.slice_s == SLICE_S
    for seconds, slice_s in ((0.0015, 0.0015 * SHARE), (0.0001, SLICE_S_MIN), (0.1, SLICE_S)):
        for _ in range(200):
            debt.called(seconds)
        assert debt.slice_s == pytest.approx(slice_s)
    debt = Debt(monotonic=Clock())
    for _ in range(100):  # a job's step has short calls, too
        for seconds in (0.0001, 0.005, 0.0001):
            debt.called(seconds)
    assert debt.slice_s > 0.8 * SHARE * 0.005
