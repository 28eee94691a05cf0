"""When the entries of a ring came: one second for each run of ids that came in it."""

from __future__ import annotations

from array import array
from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

UINT32_MAX = 2**32 - 1

FORGOTTEN_RUNS_MIN = 32
"""Runs are forgotten in batches, since each time the others move up."""


class Ages:
    """Seconds by id, run-length encoded: 12 bytes for each run."""

    __slots__ = ("_firsts", "_seconds")

    def __init__(self) -> None:
        self._firsts = array("q")  # the first id of each run, ascending
        self._seconds = array("I")

    def note(self, first_id: int, second: int) -> None:
        """Entries from `first_id` on came in this second (of the Unix time, in 32 bits)."""
        second = min(max(second, 0), UINT32_MAX)
        if self._seconds and self._seconds[-1] == second:
            return
        self._firsts.append(first_id)
        self._seconds.append(second)

    def forget_before(self, first_id: int) -> None:
        """No entry before `first_id` will be asked for again."""
        gone = bisect_right(self._firsts, first_id) - 1
        if gone >= max(FORGOTTEN_RUNS_MIN, len(self._firsts) // 4):
            del self._firsts[:gone]
            del self._seconds[:gone]

    def seconds_of(self, ids: NDArray[np.int64]) -> NDArray[np.uint32]:
        """The second of each id (ascending), all of which were noted."""
        if not ids.size:
            return np.empty(0, dtype=np.uint32)
        runs = np.searchsorted(np.array(self._firsts, dtype=np.int64), ids, side="right") - 1
        return np.array(self._seconds, dtype=np.uint32)[runs]
