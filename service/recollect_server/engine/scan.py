"""Work of a search that is done a little at a time, each step as much as it may take."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from recollect_server.domain import work
from recollect_server.domain.arrays import Raw
from recollect_server.domain.spec import Dtype
from recollect_server.engine import kernels

ROWS_MIN = 256
"""The fewest keys of a step: with fewer, a call of the kernels would be mostly overhead."""


def in_turns(
    cumulative: NDArray[np.float64], left: int, do: Callable[[slice], None]
) -> Generator[int, int, int]:
    """Does something part by part.

    Args:
        cumulative: What it takes up to and with each thing that there is to do, in multiply-adds.
        left: What the first step may take.
        do: Does those of a slice.

    Returns:
        What the next step may take.
    """
    first, done = 0, 0.0
    while first < len(cumulative):
        reached = int(np.searchsorted(cumulative, done + left, side="right"))
        part = slice(first, min(len(cumulative), max(first + 1, reached)))
        do(part)
        left = yield int(cumulative[part.stop - 1] - done)
        first, done = part.stop, float(cumulative[part.stop - 1])
    return left


def scan_in_turns(
    best: kernels.Best,
    queries: Raw,
    keys: Raw,
    query_dtype: Dtype,
    dtype: Dtype,
    *,
    parts: Sequence[slice],
    left: int,
) -> Generator[int, int, int]:
    """Multiplies queries with all keys of some slots.

    Args:
        best: Takes the best of them.
        queries: [H, n, D].
        keys: [H, slots, D].
        query_dtype: What the bits of queries mean.
        dtype: Of keys.
        parts: Slots.
        left: What the first step may take, in multiply-adds.

    Returns:
        What the next step may take.
    """
    heads, count, dim = queries.shape
    for part in parts:
        first = part.start
        while first < part.stop:
            fitting = left // (heads * work.searched(count, 1, dim))
            size = min(part.stop - first, max(ROWS_MIN, fitting))
            rows = slice(first, first + size)
            kernels.scan(best, queries, keys, query_dtype=query_dtype, key_dtype=dtype, rows=rows)
            first += size
            left = yield heads * work.searched(count, size, dim)
    return left
