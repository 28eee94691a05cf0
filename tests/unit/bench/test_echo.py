"""The echo that calls over gRPC are compared with."""

from __future__ import annotations

from recollect_bench import echo
from recollect_server import pollers


def test_it_waits_for_messages_as_the_server_does() -> None:
    """One of the two has gRPC's faster way to wait, and the other is compared with it."""
    assert {pollers.VARIABLE: pollers.experiments()} == echo.ENVIRONMENT
