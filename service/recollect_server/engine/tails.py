"""How far to go for a share of what was seen, where the rest is rare and hardly any of it was."""

from __future__ import annotations

import math

import numpy as np

from recollect_server.domain.arrays import Float32

TOLD_BY = 2
"""Fewer hits than these beyond what is wanted do not tell how far that is. Then the farthest of all do, as if
with each step farther they became rarer by the same factor."""

TAIL, TAIL_MIN = 0.1, 10
"""Those are a tenth of the hits, or so many."""


def bin_of(hits: Float32, wanted: float) -> int:
    """The bin up to which a share of hits lies that is wanted; perhaps one beyond the last.

    Args:
        hits: How many in each bin, which may have faded; [bins], not all 0.
        wanted: 1 for all that were seen.
    """
    found = hits.cumsum(dtype=np.float64)
    total = float(found[-1])
    enough, missed = int(np.searchsorted(found, wanted * total)), (1 - wanted) * total
    if not 0 < missed < TOLD_BY:
        return enough
    begins = int(np.searchsorted(found, total - max(TAIL_MIN, TAIL * total)))
    tail = hits[begins + 1 :]
    beyond = float(tail.sum())
    if beyond <= missed:
        return enough
    mean = float(np.average(np.arange(1, len(tail) + 1), weights=tail))
    return max(enough, begins + math.ceil(mean * math.log(beyond / missed)))
