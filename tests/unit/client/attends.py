"""Small attends of several callers, and whether two of them were answered alike."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt

import recollect

HEADS, DIM, STREAMS = 2, 4, 8

Floats = npt.NDArray[np.float32]
Answer = recollect.AttendResult[Floats]

Reply = TypeVar("Reply")


def queries(number: int, *, rows: int = 1, tokens: int = 1) -> Floats:
    """Of a caller."""
    return np.random.default_rng(number + 1).standard_normal((rows, HEADS, tokens, DIM), dtype=np.float32)


def assert_same(one: Answer, other: Answer) -> None:
    """Two answers to the same question."""
    np.testing.assert_allclose(one.output, other.output, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one.lse, other.lse, rtol=1e-5)
    assert (one.ids is None) == (other.ids is None)
    if one.ids is not None and other.ids is not None:
        np.testing.assert_array_equal(one.ids, other.ids)
    assert one.next_sequences == other.next_sequences


def differing(attend: Callable[..., Reply]) -> list[Callable[[], Reply]]:
    """Asks what is not alike: by layer, top_k, scale, shape, how it travels, or what is wanted."""
    return [
        partial(attend, 0, queries(1), top_k=5, streams=["s1"]),
        partial(attend, 1, queries(2), top_k=5, streams=["s1"]),
        partial(attend, 0, queries(3), top_k=6, streams=["s1"]),
        partial(attend, 0, queries(4), top_k=5, scale=2.0, streams=["s1"]),
        partial(attend, 0, queries(5, tokens=2), top_k=5, streams=["s1"]),
        partial(attend, 0, queries(6), top_k=5, with_ids=False, streams=["s1"]),
        partial(attend, 0, queries(7), top_k=5, missing_ok=True, streams=["nowhere"]),
        partial(attend, 0, queries(8), top_k=5, min_sequences=[3], streams=["s1"]),
        partial(attend, 0, queries(9), top_k=5, query_dtype="int8", streams=["s1"]),
    ]
