"""Background work has its share of the time beside calls; after more than that it waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

SHARE = 2 / 3
"""Of the time that calls take, so much is for background work: a step takes less than two steps' time."""

IDLE_S = 0.02
"""A bank that no call has come to for so long is idle: its work takes all the time that there is."""

Key = tuple[str, str, int]
"""Of a bank."""


@dataclass(slots=True)
class _Debt:
    seconds: float
    called_at_s: float


class Debts:
    """Of the banks whose background work is under way; others have none.

    A job that adds, searches and evicts in turn would otherwise wait for background work in each of its
    calls, and take three times as long while lists are made.

    Args:
        monotonic: A clock, in seconds.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._debts: dict[Key, _Debt] = {}

    def called(self, key: Key, seconds: float) -> None:
        """A call of the bank took so long. What calls earn in advance is the share of the last one."""
        debt = self._debts.get(key)
        if debt is not None:
            debt.seconds = max(0.0, debt.seconds) - SHARE * seconds
            debt.called_at_s = self._monotonic()

    def worked(self, key: Key, seconds: float) -> None:
        """Background work of the bank took so long."""
        debt = self._debts.setdefault(key, _Debt(0.0, self._monotonic()))
        debt.seconds += seconds

    def is_due(self, key: Key) -> bool:
        """Whether background work may go on: its calls have had theirs, or there are none."""
        debt = self._debts.get(key)
        if debt is None:
            return True
        if debt.seconds > 0 and self._monotonic() - debt.called_at_s < IDLE_S:
            return False
        debt.seconds = min(0.0, debt.seconds)
        return True

    def forgive(self, key: Key) -> None:
        """There is nothing more to do for the bank, or it is gone."""
        self._debts.pop(key, None)
