"""The one idea, in bytes: ship attention to the memory, not memory to the attention."""

from __future__ import annotations

import pytest

from tests.benchmarks.wire_bytes import Report, measure

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def report() -> Report:
    """Counted once."""
    return measure()


def test_attend_is_a_sixteenth_of_fetch(report: Report) -> None:
    """Attend sends more than 1/16 of the bytes of fetching keys and values."""
    assert report.forward_ratio <= 1 / 16, report.markdown()


def test_attend_with_its_gradient_is_a_sixth_of_fetch(report: Report) -> None:
    """Attend and its gradient together send more than 1/6 of the bytes of fetching keys and values."""
    assert report.training_ratio <= 1 / 6, report.markdown()


def test_everything_was_counted(report: Report) -> None:
    """The counts are smaller than the tensors alone: the proxy missed something."""
    queries = 8 * 512 * 64 * 2
    pairs = 8 * 512 * 32 * 64 * 2
    assert report.fetch.up >= queries
    assert report.fetch.down >= 2 * pairs
    assert report.attend.up >= queries
    assert report.attend.down >= queries
    assert report.attend_backward.up >= 2 * queries
    assert report.attend_backward.down >= queries
