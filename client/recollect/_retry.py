"""When a failed request is sent again, and until when."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from recollect._checks import check_positive
from recollect.errors import DeadlineExceededError, RecollectError, UnavailableError

_BACKOFF_FIRST_S = 0.05
_BACKOFF_MAX_S = 2.0


class Deadline:
    """The point in time by which a logical call must be over, with all its parts and retries."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = None if timeout_s is None else check_positive("timeout_s", timeout_s)
        self._end = None if self._timeout_s is None else time.monotonic() + self._timeout_s

    def left_s(self) -> float | None:
        """Seconds left; None without a deadline.

        Raises:
            DeadlineExceededError: None are left.
        """
        if self._end is None:
            return None
        left_s = self._end - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceededError(f"timeout_s={self._timeout_s:g} passed before the call was complete")
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
        return Attempts(self.retries if retry_safe else 0, deadline)


class Attempts:
    """The attempts of one request: only UNAVAILABLE is tried again, after a random pause that grows."""

    def __init__(self, retries: int, deadline: Deadline) -> None:
        self._left = retries
        self._deadline = deadline
        self._ceiling_s = _BACKOFF_FIRST_S

    def pause_s(self, error: RecollectError) -> float:
        """How long to wait before the next attempt.

        Raises:
            RecollectError: `error` itself, where there should be none.
        """
        if self._left <= 0 or not isinstance(error, UnavailableError):
            raise error
        self._left -= 1
        # Full jitter: clients that failed together must not come back together.
        pause_s = random.uniform(0, self._ceiling_s)
        self._ceiling_s = min(2 * self._ceiling_s, _BACKOFF_MAX_S)
        if error.retry_after_s is not None:
            pause_s += error.retry_after_s
        left_s = self._deadline.left_s()
        if left_s is not None and pause_s >= left_s:
            raise error  # it says more than "deadline exceeded" would
        return pause_s
