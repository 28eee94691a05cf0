"""The right answers, and what share of them an answer has."""

from __future__ import annotations

import numpy as np
import pytest

from recollect_bench import truth
from recollect_bench.truth import recall, top_k

NUMBERS = np.random.default_rng(0)
KEYS = NUMBERS.standard_normal((300, 8)).astype(np.float32)
QUERIES = NUMBERS.standard_normal((7, 8)).astype(np.float32)


def _brute(k: int) -> np.ndarray:
    return np.argsort(-(QUERIES.astype(np.float64) @ KEYS.astype(np.float64).T), axis=1)[:, :k]


@pytest.mark.parametrize("block", [64, 100_000])
def test_top_k_is_that_of_sorting_everything(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recall is measured against wrong answers: blocks are merged wrongly."""
    monkeypatch.setattr(truth, "BLOCK", block)
    np.testing.assert_array_equal(np.sort(top_k(KEYS, QUERIES, 10), axis=1), np.sort(_brute(10), axis=1))


def test_recall_of_right_and_wrong_answers() -> None:
    """An answer is judged better or worse than it is."""
    right = _brute(10)
    assert recall(right, KEYS, QUERIES) == 1
    half = right.copy()
    half[:, 5:] = _brute(300)[:, -5:]
    assert recall(half, KEYS, QUERIES) == 0.5
    assert recall(np.full((7, 10), -1), KEYS, QUERIES) == 0


def test_evicted_and_repeated_entries_do_not_count() -> None:
    """A peer that returns what was evicted, or one entry many times, passes for right."""
    right = _brute(10)
    assert recall(right + 1000, KEYS, QUERIES, first_id=1000) == 1
    assert recall(right, KEYS, QUERIES, first_id=1000) == 0
    assert recall(np.repeat(right[:, :1], 10, axis=1), KEYS, QUERIES) == pytest.approx(0.1)


def test_ties_are_no_errors() -> None:
    """Of equal keys the other one was found, and it counts as wrong."""
    keys = np.repeat(KEYS[:50], 2, axis=0)
    best = np.argmax(QUERIES @ keys.T, axis=1)
    assert recall((best ^ 1)[:, None], keys, QUERIES) == 1


def test_fewer_entries_than_asked_for() -> None:
    """A memory with fewer than k entries can never be right."""
    found = np.concatenate((np.tile(np.arange(3), (7, 1)), np.full((7, 5), -1)), axis=1)
    assert recall(found, KEYS[:3], QUERIES) == 1
    assert recall(found, KEYS[:0], QUERIES) == 1
