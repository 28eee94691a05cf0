"""Small attends of several callers, and whether two of them were answered alike."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

import recollect

HEADS, DIM, STREAMS = 2, 4, 8

Floats = npt.NDArray[np.float32]
Answer = recollect.AttendResult[Floats]


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
