"""What a session does while its memory is away: go on, count, and look again from time to time."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Literal

from recollect import RecollectError

logger = logging.getLogger("recollect_torch")

Call = Literal["retrieve", "backward", "commit", "reset"]


@dataclass(slots=True)
class Fallbacks:
    """How often a session went on without its memory.

    Attributes:
        retrieve: Retrievals that were answered by local attention alone.
        backward: Query gradients that are zero because the memory was away, or was lost since forward.
        commit: Layers' adds that were dropped.
        reset: Resets that could not be sent at once; they are sent before the next retrieval or add.
        stale: Query gradients that are zero because an entry was evicted since forward.
    """

    retrieve: int = 0
    backward: int = 0
    commit: int = 0
    reset: int = 0
    stale: int = 0


class Outage:
    """A circuit breaker: after a failure nothing is asked for a while.

    The pause is at least `retry_interval_s`, what the server asked for, and as long as the failed call took:
    a server that does not answer costs at most half of the time.

    Args:
        retry_interval_s: Shortest pause.
    """

    def __init__(self, *, retry_interval_s: float) -> None:
        self._retry_interval_s = retry_interval_s
        self._since: float | None = None
        self._ask_again_at = 0.0
        self._calls = 0

    def pausing(self) -> bool:
        """True while it is too early to ask again."""
        return self._since is not None and time.monotonic() < self._ask_again_at

    def skipped(self) -> None:
        """Counts a call that was not made."""
        self._calls += 1

    def failed(self, error: RecollectError, *, took_s: float) -> None:
        """Starts or prolongs the outage; logs its start once."""
        now = time.monotonic()
        if self._since is None:
            self._since, self._calls = now, 0
            logger.warning("memory is away, going on with local attention: %s", error)
        self._calls += 1
        self._ask_again_at = now + max(self._retry_interval_s, took_s, error.retry_after_s or 0.0)

    def answered(self) -> None:
        """Ends the outage, if there was one."""
        if self._since is not None:
            away_s = time.monotonic() - self._since
            logger.warning("memory is back after %.1f s; %d calls went without it", away_s, self._calls)
            self._since = None
