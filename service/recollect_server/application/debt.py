"""Background work has its share of the time beside calls; after more than that it waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable

SHARE = 2 / 3
"""Of the time that calls take, so much is for background work: a step takes less than two steps' time."""

SPARE = 1 / 4
"""Of all time, where that is more: calls that come now and then take little, and leave the rest."""

SLICE_S, SLICE_S_MIN = 0.004, 0.0005
"""At once: a call may have to wait for it. Less where calls are short, but more than to begin takes."""

REMEMBERED = 0.95
"""Of the longest call of late, with each one that is shorter: a job's calls are of several kinds."""

IDLE_S = 0.02
"""A device that has answered no call for so long is idle: background work takes all the time there is."""


class Debt:
    """What background work of a device has had of its time beyond its share.

    A job that adds, searches and evicts in turn would otherwise wait for background work in each of its
    calls, and take three times as long while lists are made. It is the device's debt, and not that of a bank
    or a namespace: where a hundred have something to do, a call would wait for a hundred.

    Args:
        monotonic: A clock, in seconds.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._seconds = 0.0
        self._called_at_s = monotonic()
        self._call_s = SLICE_S / SHARE

    @property
    def is_idle(self) -> bool:
        """Whether no call has been answered for a while."""
        return self._monotonic() - self._called_at_s >= IDLE_S

    @property
    def slice_s(self) -> float:
        """So long it may go on at once: as long as a call's share."""
        return min(SLICE_S, max(SLICE_S_MIN, SHARE * self._call_s))

    def called(self, seconds: float) -> None:
        """A call took so long. What calls earn in advance is the share of the last one."""
        now_s = self._monotonic()
        self._call_s = max(seconds, REMEMBERED * self._call_s)
        earned = max(SHARE * seconds, SPARE * min(IDLE_S, now_s - self._called_at_s))
        self._seconds, self._called_at_s = max(0.0, self._seconds) - earned, now_s

    def worked(self, seconds: float) -> None:
        """Background work took so long, or will; what it then took less is taken back as less than 0."""
        self._seconds += seconds

    def is_due(self) -> bool:
        """Whether background work may go on: calls have had theirs."""
        return self._seconds <= 0

    def forgive(self) -> None:
        """There are no calls that could have theirs."""
        self._seconds = min(0.0, self._seconds)
