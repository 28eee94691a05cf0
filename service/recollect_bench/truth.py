"""What the right answers are, and how much of them an answer has."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recollect_bench.datasets import Floats

Ids = NDArray[np.int64]

BLOCK = 65_536
"""Keys that are scored at once."""

ROUNDING = 1e-5
"""Two scores of float32 that differ by less, relative to 1, are the same."""


def top_k(keys: Floats, queries: Floats, k: int) -> Ids:
    """The rows of the k largest inner products of each query, in no order: [M, min(k, N)]."""
    k = min(k, len(keys))
    scores = np.empty((len(queries), 0), dtype=np.float32)
    ids = np.empty((len(queries), 0), dtype=np.int64)
    for first in range(0, len(keys), BLOCK):
        block = queries @ keys[first : first + BLOCK].T
        rows = np.broadcast_to(np.arange(first, first + block.shape[1]), block.shape)
        scores, ids = np.hstack((scores, block)), np.hstack((ids, rows))
        best = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, -k:]
        scores, ids = np.take_along_axis(scores, best, axis=1), np.take_along_axis(ids, best, axis=1)
    return ids


def recall(found: NDArray[np.integer], keys: Floats, queries: Floats, *, first_id: int = 0) -> float:
    """The share of right entries in an answer.

    An entry is right if its score is not below the k-th best one (less rounding), so that ties are no errors;
    one that comes twice counts once.

    Args:
        found: [M, k] ids; -1 where there is none.
        keys: [N, D], what the memory held: row i has the id first_id + i.
        queries: [M, D].
        first_id: Of the oldest entry. Other ids, such as those of evicted entries, are wrong.
    """
    right, right_answers = 0, top_k(keys, queries, found.shape[1])
    k = right_answers.shape[1]
    if not k:
        return 1.0
    for query, ids, best in zip(queries, found, right_answers, strict=True):
        rows = np.unique(ids.astype(np.int64)) - first_id
        rows = rows[(rows >= 0) & (rows < len(keys))]
        threshold = float((keys[best] @ query).min())
        good = keys[rows] @ query >= threshold - ROUNDING * max(1.0, abs(threshold))
        right += min(k, int(good.sum()))
    return float(right / (k * len(queries)))
