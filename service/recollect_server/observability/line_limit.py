"""A bound on how many lines of one kind the log gets: nobody outside can fill a disk."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger("recollect.calls")

LINES_PER_SECOND = 10
REASONS_MAX = 64


@dataclass(slots=True)
class _Window:
    """One second of one reason."""

    began_s: float
    level: int
    written: int = 0
    left_out: int = 0


class LineLimit:
    """Of each reason so many lines a second are written, then one that says how many were left out.

    Threads may share one.

    Args:
        lines_per_second: For each reason.
        monotonic: Seconds.
    """

    def __init__(
        self, *, lines_per_second: int = LINES_PER_SECOND, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._lines_per_second = lines_per_second
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._windows: dict[str, _Window] = {}

    def may_write(self, reason: str, *, level: int) -> bool:
        """Whether a line may be written; if not it is counted.

        Args:
            reason: What the line is about. The server's words, never a caller's.
            level: Of the line, and of the one that may say later how many there were.
        """
        self.catch_up()
        with self._lock:
            window = self._windows.get(reason)
            if window is None:
                if len(self._windows) >= REASONS_MAX:
                    return False
                window = self._windows[reason] = _Window(self._monotonic(), level)
            if window.written < self._lines_per_second:
                window.written += 1
                return True
            window.left_out += 1
            return False

    def catch_up(self) -> None:
        """Says what was left out in seconds that are over. Costs nothing where nothing was written."""
        if self._windows:
            self._close_windows(self._monotonic() - 1.0)

    def flush(self) -> None:
        """Says what was left out so far. For the end of the process."""
        self._close_windows(float("inf"))

    def _close_windows(self, until_s: float) -> None:
        with self._lock:
            ended = [reason for reason, window in self._windows.items() if window.began_s <= until_s]
            closed = [(reason, self._windows.pop(reason)) for reason in ended]
        for reason, window in closed:
            if window.left_out:
                log.log(
                    window.level,
                    "more of them were left out of the log",
                    extra={"reason": reason, "calls": window.left_out},
                )
