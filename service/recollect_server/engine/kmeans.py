"""Centroids of inverted lists on the CPU, a little at a time."""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np

from recollect_server.domain import work
from recollect_server.domain.arrays import Float32
from recollect_server.engine import kernels

ROUNDS = 6
"""Over the sample."""

TYPICAL = 4
"""So many keys of each list are taken to be as far from its centroid as keys are on average."""

SMALL = 1e-8
"""A list's variance is at least this share of its centroid's square: of equal keys rounding is left."""


def lists_for(entries: int) -> int:
    """How many lists: the power of two next to four times the square root."""
    return 1 << round(math.log2(4 * math.sqrt(max(1, entries))))


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
