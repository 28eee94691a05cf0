"""How far queries have to reach in inverted lists: learnt from where true hits were."""

from __future__ import annotations

import math

import numpy as np

from recollect_server.domain.arrays import Float32, Int64
from recollect_server.engine.tails import bin_of

BINS, FARTHEST = 512, 4.0
"""How finely reaches are told apart, up to the largest that is."""

SCALE = BINS / FARTHEST

KEPT = 0.8
"""How much earlier samples still count when new ones come."""


class Reach:
    """How far queries have to reach to find what they ask for: learnt from where true hits were.

    Attributes:
        far: In radii of a list.
        share: Of all lists, so many are that near, on average.
    """

    def __init__(self) -> None:
        self.far, self.share = np.inf, 1.0
        self._hits = np.zeros(BINS, dtype=np.float32)  # by the reach that finds them
        self._lists = np.zeros(BINS, dtype=np.float32)

    @property
    def bytes(self) -> int:
        """What it takes."""
        return self._hits.nbytes + self._lists.nbytes

    def learn(self, hits: Float32, lists: Float32) -> None:
        """Takes the reaches of true hits [...] and of lists [N, L]."""
        self._hits += np.bincount(_bins(hits), minlength=BINS)
        self._lists += np.bincount(_bins(lists.ravel()), minlength=BINS)

    def settle(self, wanted: float, *, farther: float = 1.0) -> None:
        """Goes far enough to find the share of hits that is wanted, or so many times as far."""
        if self._hits.any():
            self.far, self.share = self.needed(wanted, farther=farther)

    def fade(self, kept: float) -> None:
        """Lets what was learnt count for less beside what comes."""
        self._hits *= kept
        self._lists *= kept

    def needed(self, wanted: float, *, farther: float = 1.0) -> tuple[float, float]:
        """How far to go for the share of hits that is wanted, and the share of lists that are that near."""
        reached = self._lists.cumsum(dtype=np.float64)
        enough = bin_of(self._hits, wanted) if self._hits.any() else BINS
        enough = math.ceil((enough + 1) * farther) - 1
        if enough >= BINS - 1:
            return np.inf, 1.0
        return (enough + 1) / SCALE, float(reached[enough] / reached[-1])


def _bins(reaches: Float32) -> Int64:
    """The bin of each: the first where a centroid is good enough, the last for all that is farther."""
    bins: Int64 = np.clip(reaches * SCALE, 0, BINS - 1).astype(np.int64)
    return bins
