"""Values of labels, bounded in number: what a metric costs must not depend on who calls."""

from __future__ import annotations

from collections.abc import Iterable

OTHER = "other"
UNKNOWN = "unknown"

GRPC_STATUSES = frozenset(
    {
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    }
)
HTTP_STATUSES = frozenset(str(code) for code in range(100, 600))
STATUSES = GRPC_STATUSES | HTTP_STATUSES
TRANSPORTS = frozenset({"grpc", "direct", "embedded", "http"})


class FirstSeen:
    """Keeps the first values that it sees, and calls all later ones alike.

    Args:
        count_max: How many are kept.
        later: What the others are called.
    """

    def __init__(self, count_max: int, *, later: str = OTHER) -> None:
        self._count_max = count_max
        self._later = later
        self._seen: set[str] = set()

    def label(self, value: str) -> str:
        """The value, or what the others are called. "" is nobody, and takes no place."""
        if value in self._seen or not value:
            return value
        if len(self._seen) >= self._count_max:
            return self._later
        self._seen.add(value)
        return value


class OneOf:
    """Lets known values pass, and calls all others alike.

    Args:
        known: The values.
        unknown: What the others are called.
    """

    def __init__(self, known: Iterable[str], *, unknown: str = UNKNOWN) -> None:
        self._known = frozenset(known)
        self._unknown = unknown

    def label(self, value: str) -> str:
        """The value, or what the others are called."""
        return value if value in self._known else self._unknown
