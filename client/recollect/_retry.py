"""When a failed request is sent again, and until when."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass

from recollect._checks import check_positive
from recollect.errors import DeadlineExceededError, RecollectError, ResourceExhaustedError, UnavailableError

_BACKOFF_FIRST_S = 0.05
_BACKOFF_MAX_S = 2.0

_TIMEOUT_S_MAX = 10.0 * 365 * 86_400
"""Longer ones are none: sockets and gRPC fail with times that are too far away. The server has it so too."""

_HINT_STRETCH = 1.5
"""Pauses are from what the server asks for up to so many times that."""

_REFUSED = frozenset({"OVERLOADED", "DRAINING"})
_REFUSED_QUOTA = "QUOTA_"
"""Reasons of servers that did not begin with a call."""


class Deadline:
    """The point in time by which a logical call must be over, with all its parts and retries.

    Attributes:
        timeout_s: From the beginning; infinite without a deadline, as with one that is years away.
        end_s: By `time.monotonic`.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self.timeout_s = math.inf if timeout_s is None else check_positive("timeout_s", timeout_s)
        if self.timeout_s > _TIMEOUT_S_MAX:
            self.timeout_s = math.inf
        self.end_s = time.monotonic() + self.timeout_s

    def within(self, most_s: float) -> Deadline:
        """The same, or one in so many seconds from now if that is earlier.

        Raises:
            DeadlineExceededError: It has passed.
        """
        left_s = self.left_s()
        return Deadline(most_s if left_s is None else min(most_s, left_s))

    def left_s(self) -> float | None:
        """Seconds left; None without a deadline.

        Raises:
            DeadlineExceededError: None are left.
        """
        if self.end_s == math.inf:
            return None
        left_s = self.end_s - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceededError(f"timeout_s={self.timeout_s:g} passed before the call was complete")
        return left_s


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often to try again.

    Attributes:
        retries: Attempts after the first one; 0 switches retrying off.
    """

    retries: int = 3

    def start(self, deadline: Deadline, *, retry_safe: bool) -> Attempts:
        """For one request."""
        return Attempts(self.retries, deadline, retry_safe=retry_safe)


class Attempts:
    """The attempts of one request, with a random pause between them.

    Another one is made where nobody answered or the server asks to try later; and if the request is not
    safe to repeat, only where the server says that it did not begin with it.
    """

    def __init__(self, retries: int, deadline: Deadline, *, retry_safe: bool = True) -> None:
        self._left = retries
        self._deadline = deadline
        self._retry_safe = retry_safe
        self._ceiling_s = _BACKOFF_FIRST_S

    def pause_s(self, error: RecollectError) -> float:
        """How long to wait before the next attempt.

        Raises:
            RecollectError: `error` itself, where there should be none.
        """
        try:
            if self._left <= 0 or not _may_pass(error) or not (self._retry_safe or _was_refused(error)):
                raise error
            self._left -= 1
            # Jitter: clients that failed together must not come back together.
            if error.retry_after_s is not None:
                pause_s = random.uniform(1, _HINT_STRETCH) * error.retry_after_s
            else:
                pause_s = random.uniform(0, self._ceiling_s)
                self._ceiling_s = min(2 * self._ceiling_s, _BACKOFF_MAX_S)
            left_s = self._deadline.left_s()
            if left_s is not None and pause_s >= left_s:
                raise error  # it says more than "deadline exceeded" would
            return pause_s
        finally:
            del error  # its traceback holds this frame: each would hold the other, and the caller's arrays


def _may_pass(error: RecollectError) -> bool:
    """Whether a later attempt may succeed: the server is away, or says when a quota allows more."""
    if isinstance(error, ResourceExhaustedError):
        return error.retry_after_s is not None
    return isinstance(error, UnavailableError)


def _was_refused(error: RecollectError) -> bool:
    """Whether the server says that it did not begin with the call."""
    return error.reason in _REFUSED or error.reason.startswith(_REFUSED_QUOTA)
