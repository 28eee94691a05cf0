"""Background work takes turns with calls by the time that both take."""

from __future__ import annotations

import pytest

from recollect_server.application.debts import IDLE_S, SHARE, Debts

BANK, OTHER = ("n", "s", 0), ("n", "t", 0)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_work_waits_until_calls_have_had_their_share() -> None:
    """Calls wait for background work one after the other."""
    debts = Debts(monotonic=Clock())
    assert debts.is_due(BANK)
    debts.worked(BANK, 0.006)
    assert not debts.is_due(BANK)
    debts.called(BANK, 0.005 / SHARE)
    assert not debts.is_due(BANK)
    debts.called(BANK, 0.002 / SHARE)
    assert debts.is_due(BANK)


def test_each_bank_has_its_own() -> None:
    """One bank's lists wait because another's are made."""
    debts = Debts(monotonic=Clock())
    debts.worked(BANK, 0.006)
    assert debts.is_due(OTHER)
    debts.called(OTHER, 1.0)
    assert not debts.is_due(BANK)


def test_a_long_call_earns_its_share() -> None:
    """Where each call takes a tenth of a second one slice runs beside it: lists take minutes to be made."""
    debts = Debts(monotonic=Clock())
    debts.worked(BANK, 0.004)
    debts.called(BANK, 0.1)
    slices = 0
    while debts.is_due(BANK):
        debts.worked(BANK, 0.004)
        slices += 1
    assert slices == pytest.approx((0.1 * SHARE - 0.004) / 0.004, abs=2)


def test_calls_save_nothing_up() -> None:
    """After an hour of calls the next ones wait for an hour of work."""
    debts = Debts(monotonic=Clock())
    debts.worked(BANK, 0.001)
    for _ in range(1000):
        debts.called(BANK, 0.003)
    assert debts.is_due(BANK)
    debts.worked(BANK, 0.006)
    assert not debts.is_due(BANK)


def test_an_idle_bank_owes_nothing() -> None:
    """Lists of a bank that nobody calls now are never done; or the first call after it waits for all."""
    clock = Clock()
    debts = Debts(monotonic=clock)
    for _ in range(10):
        debts.worked(BANK, 0.006)
        clock.now_s += 1.01 * IDLE_S
        assert debts.is_due(BANK)
    debts.worked(BANK, 0.006)
    debts.called(BANK, 0.001 / SHARE)
    assert not debts.is_due(BANK)
    debts.called(BANK, 0.006 / SHARE)
    assert debts.is_due(BANK)


def test_what_is_done_is_forgiven() -> None:
    """A server remembers each bank that ever had an index."""
    debts = Debts(monotonic=Clock())
    debts.worked(BANK, 0.006)
    debts.forgive(BANK)
    assert debts.is_due(BANK)
    assert not debts._debts
