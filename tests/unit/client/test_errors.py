"""The error tree and its table."""

from __future__ import annotations

import pickle

import grpc
import pytest

import recollect
from recollect import errors
from recollect.v1 import memory_pb2 as pb

LEAVES = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.RecollectError)
]
LOCAL = {errors.ClosedError, errors.MissingExtraError}  # never come from a server


def test_every_status_has_a_class() -> None:
    """A server's status would reach the user as the wrong class, or as none."""
    statuses = {code.name for code in grpc.StatusCode} - {"OK"}
    assert set(errors.BY_STATUS) == statuses


def test_every_class_can_come_from_a_server_or_is_local() -> None:
    """A class would exist that nothing ever raises."""
    reachable = {*errors.BY_STATUS.values(), *errors.BY_REASON.values(), *LOCAL, errors.RecollectError}
    assert set(LEAVES) == reachable


def test_every_class_is_public() -> None:
    """A user could not name an error to catch it."""
    for kind in LEAVES:
        assert getattr(recollect, kind.__name__) is kind
        assert kind.__name__ in recollect.__all__


@pytest.mark.parametrize(("code", "reason"), list(errors.BY_REASON))
def test_reason_chooses_the_leaf(code: str, reason: str) -> None:
    """A stale entry could not be told from other failed preconditions."""
    error = errors.error_from_status(code, "m", pb.ErrorDetail(reason=reason))
    assert type(error) is errors.BY_REASON[code, reason]
    assert isinstance(error, errors.BY_STATUS[code])


def test_unknown_status_and_reason_are_not_lost() -> None:
    """A newer server's error would raise KeyError in an older client."""
    error = errors.error_from_status("TEAPOT", "short and stout", pb.ErrorDetail(reason="NEW"))
    assert type(error) is errors.InternalError
    assert error.reason == "NEW"
    assert "short and stout" in str(error)


def test_details_are_kept_and_shown() -> None:
    """What the server said about an error would be dropped on its way to the user."""
    detail = pb.ErrorDetail(reason="OVERLOADED", argument="queries", error_id="e-1", retry_after_ms=1500)
    error = errors.error_from_status("UNAVAILABLE", "queue is full", detail)
    assert (error.message, error.reason, error.argument) == ("queue is full", "OVERLOADED", "queries")
    assert (error.error_id, error.retry_after_s) == ("e-1", 1.5)
    for shown in ("queue is full", "OVERLOADED", "queries", "e-1", "1.5 s"):
        assert shown in str(error)


@pytest.mark.parametrize("kind", LEAVES)
def test_errors_cross_process_borders(kind: type[errors.RecollectError]) -> None:
    """A data-loader worker's error would turn into a TypeError in the parent process."""
    error = kind("m", reason="R", argument="a", retry_after_s=1.0, error_id="i")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
