"""Lists or exact search: whichever takes less time for a question, as estimated and, better, as measured.

Estimates (`costs.py`) are those of one machine. What a bank's questions took is measured when they are
answered, and the way that seems slower is tried now and then.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from recollect_server.domain.steps import Steps

Answer = TypeVar("Answer")

MEASURED = 5
"""So many times of late are remembered of the way that is taken, and the one in the middle counts. Of the
other way it is the last one, since those before are from long ago."""

TRIED_AFTER, TRIED_AFTER_MAX = 8, 512
"""After so many questions the other way is tried; each time that it is slower, after twice as many."""

CLEARLY = 1.5
"""Where it takes so many times as long, it is tried after four times as many."""

TRIED_UP_TO, TRIED_S = 4.0, 0.02
"""What seems to take so many times as long, or so much longer, is not tried."""


@dataclass(slots=True)
class _Size:
    """What is known of questions of about one size: seconds for each unit of estimated work, either way."""

    exact: tuple[float, ...] = ()  # never changed in place: other threads look at them
    lists: tuple[float, ...] = ()
    takes_lists: bool = True
    asked: int = 0  # since the other way was tried
    tried_after: int = TRIED_AFTER


class Choice:
    """Of one bank."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}

    def prefers_lists(self, queries: int, *, exact: int, lists: int) -> bool:
        """Whether lists take less time than exact search, whose work is estimated at so much each."""
        exact_s, lists_s, _ = _seconds(self._size(queries), exact, lists)
        return lists_s < exact_s

    def takes_lists(self, queries: int, *, exact: int, lists: int) -> bool:
        """The same for a question that is asked now: at times the other way, to know better."""
        size = self._size(queries)
        exact_s, lists_s, is_known = _seconds(size, exact, lists)
        prefers = lists_s < exact_s
        if prefers != size.takes_lists:
            size.takes_lists, size.asked, size.tried_after = prefers, 0, TRIED_AFTER
        size.asked += 1
        less_s, more_s = sorted((exact_s, lists_s))
        is_far = more_s > TRIED_UP_TO * less_s or (is_known and more_s - less_s > TRIED_S)
        if size.asked <= size.tried_after or is_far:
            return prefers
        times = 4 if is_known and more_s > CLEARLY * less_s else 2
        size.asked, size.tried_after = 0, min(TRIED_AFTER_MAX, times * size.tried_after)
        return not prefers

    def measured(self, queries: int, seconds: float, *, took_lists: bool, work: int) -> None:
        """A question took so long, whose work was estimated at so much."""
        size = self._size(queries)
        before = size.lists if took_lists else size.exact
        if took_lists != size.takes_lists:
            before = ()
        rates = (*before, seconds / work)[-MEASURED:]
        if took_lists:
            size.lists = rates
        else:
            size.exact = rates

    def _size(self, queries: int) -> _Size:
        return self._sizes.setdefault(queries.bit_length() - 1, _Size())


def _seconds(size: _Size, exact: int, lists: int) -> tuple[float, float, bool]:
    """What either way takes, and whether that is seconds: as long as nothing was measured, it is work."""
    exact_rates, lists_rates = size.exact, size.lists
    exact_rates, lists_rates = exact_rates or lists_rates, lists_rates or exact_rates
    if not exact_rates:
        return float(exact), float(lists), False
    return exact * median(exact_rates), lists * median(lists_rates), True


def timed(steps: Steps[Answer], note: Callable[[float], None]) -> Steps[Answer]:
    """Takes steps, and tells how many seconds they took, without what happened between them."""
    begun_s = time.perf_counter()
    seconds = 0.0
    try:
        done = next(steps)
        while True:
            seconds += time.perf_counter() - begun_s
            left = yield done
            begun_s = time.perf_counter()
            done = steps.send(left)
    except StopIteration as finished:
        answer: Answer = finished.value
    note(seconds + time.perf_counter() - begun_s)
    return answer
