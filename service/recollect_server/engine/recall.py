"""How much of what exact search finds was found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recollect_server.domain.arrays import Float32, Int64

ALIKE = 1e-5
"""Of the largest score: so much apart may be those of one entry, whose products are summed in two orders."""


def recall_of(found: Float32, wanted: Float32) -> float:
    """Of one query: the share of the scores wanted [K], -inf for none, that those found [K] are as good as.

    Scores, not slots: of entries that score alike, one is as good as the other.
    """
    wanted = wanted[np.isfinite(wanted)]
    if not wanted.size:
        return 1.0
    good = found >= wanted.min() - ALIKE * np.abs(wanted).max()
    return min(1.0, float(good.sum()) / wanted.size)


def those_in(live: Sequence[slice], slots: Int64) -> Int64:
    """Slots that are in live ones; -1 in place of others."""
    there = np.zeros(slots.shape, dtype=np.bool_)
    for part in live:
        there |= (slots >= part.start) & (slots < part.stop)
    return np.where(there, slots, np.int64(-1))
