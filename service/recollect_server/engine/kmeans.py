"""Centroids of inverted lists on the CPU, a little at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from random import Random

import numpy as np

from recollect_server.domain import work
from recollect_server.domain.arrays import Float32, Raw, to_float32
from recollect_server.domain.spec import Dtype
from recollect_server.engine import kernels
from recollect_server.engine.ranges import length_of

ROUNDS = 6
"""Over the sample."""

SAMPLED_TOGETHER = 65_536
"""Elements of keys that are copied to a sample in one step, about."""

TYPICAL = 4
"""So many keys of each list are taken to be as far from its centroid as keys are on average."""

SMALL = 1e-8
"""A list's variance is at least this share of its centroid's square: of equal keys rounding is left."""


def lists_for(entries: int) -> int:
    """How many lists: the power of two next to four times the square root."""
    return 1 << round(math.log2(4 * math.sqrt(max(1, entries))))


def fill(
    sample: Float32, now: Callable[[], tuple[Raw, Sequence[slice]]], dtype: Dtype
) -> Generator[int, None, None]:
    """Copies keys of live entries to sample [n, D], at random and perhaps one twice, a few in a step.

    Args:
        sample: To be filled.
        now: Says what the keys [slots, D] and the live slots are, which may change between two steps.
        dtype: Of keys.
    """
    # Which ones is no secret and no matter; that they are the same each time makes runs comparable.
    # (Python's own: NumPy's generators are 2 MB that nothing else here needs.)
    chance = Random(len(sample))
    together = max(1, SAMPLED_TOGETHER // sample.shape[1])
    for first in range(0, len(sample), together):
        part = sample[first : first + together]
        keys, live = now()
        order = np.frombuffer(chance.randbytes(4 * len(part)), dtype=np.uint32).astype(np.int64)
        order %= length_of(live)
        oldest = live[0].stop - live[0].start
        slots = np.where(order < oldest, live[0].start + order, live[-1].start + order - oldest)
        part[:] = to_float32(keys[slots], dtype)
        yield work.moved_to_new(4 * part.size)


def centroids_of(sample: Float32, lists: int, *, rows: int) -> Generator[int, None, tuple[Float32, Float32]]:
    """K-means (Lloyd), so many rows in a step.

    Args:
        sample: [n, D], in random order; n >= lists.
        lists: L.
        rows: Of one step.

    Returns:
        Centroids [L, D], and the root mean square distances [L] of keys to theirs.
    """
    centroids = sample[:lists].copy()
    means = centroids.astype(np.float64)
    counts, squares = np.zeros(lists, dtype=np.int64), np.zeros(lists, dtype=np.float64)
    for _ in range(ROUNDS):
        half_norms = -0.5 * np.einsum("ld,ld->l", centroids, centroids)
        sums = np.zeros(centroids.shape, dtype=np.float64)
        counts[:], squares[:] = 0, 0
        for first in range(0, len(sample), rows):
            part = sample[first : first + rows]
            best = kernels.Best(len(part), 1)
            kernels.scan(
                best,
                part[None],
                centroids[None],
                query_dtype=kernels.FLOAT32,
                key_dtype=kernels.FLOAT32,
                rows=slice(0, len(centroids)),
                bias=half_norms,
            )
            assigned = np.ascontiguousarray(best.ordered()[1][:, 0])
            kernels.accumulate(part, assigned, sums, counts)
            squares += np.bincount(assigned, np.einsum("nd,nd->n", part, part), minlength=lists)
            yield (len(part) + work.READ_AS_QUERIES) * centroids.size
        empty = np.flatnonzero(counts == 0)
        sums[empty], counts[empty] = sample[-1 - empty % len(sample)], 1
        means = sums / counts[:, None]
        centroids.fill(0)  # the first ones are keys
        centroids = means.astype(np.float32)
    variances = np.maximum(squares / counts - np.einsum("ld,ld->l", means, means), 0)
    # A few keys say little of how far others will be: the others' distances count as some more.
    typical = (counts * variances).sum() / counts.sum()
    variances = (counts * variances + TYPICAL * typical) / (counts + TYPICAL)
    least = SMALL * np.einsum("ld,ld->", means, means) / lists
    return centroids, np.sqrt(np.maximum(variances, least)).astype(np.float32)
