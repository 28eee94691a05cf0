"""Whether two series of times can be told apart, as somebody who wants to would find out."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

CALLS = 2000
P_MIN = 1e-4
"""What is less likely than this by chance, and is so again when it is tried again, is a difference."""

Times = NDArray[np.float64]


def alternating(first: Callable[[int], object], second: Callable[[int], object]) -> tuple[Times, Times]:
    """Times of `CALLS` calls, half of each; they get the number of their pair."""
    took_s = np.empty((2, CALLS // 2))
    # Which of a pair comes first is left to chance: what the first does to caches is then no difference, nor
    # what happens at every second call. In a fixed order a call was told apart from itself.
    orders = np.random.default_rng().permuted(np.tile([0, 1], (CALLS // 2, 1)), axis=1)
    for pair, order in enumerate(orders):
        for which in order:
            call = second if which else first
            began_s = time.perf_counter()
            call(pair)
            took_s[which, pair] = time.perf_counter() - began_s
    return took_s[0], took_s[1]


def p_value(first: Times, second: Times) -> float:
    """How likely it is that two series from one source differ so much, one way or the other.

    By pairs (the sign test: all that is slow for a while hits both) and by ranks (Mann and Whitney's: how
    much they differ counts too). Both are blind to outliers, which say nothing of a look-up.
    """
    pairs = first.size
    signs = (np.sum(first > second) - pairs / 2) / math.sqrt(pairs / 4)
    ranks = np.concatenate([first, second]).argsort().argsort() + 1.0
    expected, spread = pairs * (2 * pairs + 1) / 2, math.sqrt(pairs * pairs * (2 * pairs + 1) / 12)
    shift = (float(ranks[:pairs].sum()) - expected) / spread
    # Two tests have two chances to be wrong.
    return min(1.0, 2 * min(math.erfc(abs(z) / math.sqrt(2)) for z in (float(signs), shift)))


def told_apart(
    first: Callable[[int], object], second: Callable[[int], object], *, attempts: int = 2
) -> list[float]:
    """The p-values of measurements in which the two differed; fewer than `attempts` if one did not.

    One in ten thousand does by chance, or because something else began to run in the midst of it.
    """
    found: list[float] = []
    while len(found) < attempts:
        times = alternating(first, second)
        p = p_value(*times)
        log.info("p = %.3g; medians: %s us", p, [round(1e6 * float(np.median(each)), 1) for each in times])
        if p >= P_MIN:
            break
        found.append(p)
    return found
