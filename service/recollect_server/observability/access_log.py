"""A line for each call that did not go well, and a bound on their number."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from recollect_server.domain.telemetry import CallRecord

log = logging.getLogger("recollect.calls")

INTERNAL = "INTERNAL"
LINES_PER_SECOND = 10
REASONS_MAX = 64
METHOD_LENGTH_MAX = 128
"""An unknown method's name is the caller's choice."""


@dataclass(slots=True)
class _Window:
    """One second of one reason."""

    began_s: float
    written: int = 0
    left_out: int = 0


class LoggingTelemetry:
    """Writes refused and failed calls to the log: INFO, an INTERNAL error ERROR; all others DEBUG.

    A flood of refusals must not fill a disk: of each reason so many lines a second are written, then
    one line that says how many were left out.

    Args:
        lines_per_second: For each reason.
        monotonic: Seconds.
    """

    def __init__(
        self, *, lines_per_second: int = LINES_PER_SECOND, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._lines_per_second = lines_per_second
        self._monotonic = monotonic
        self._windows: dict[str, _Window] = {}

    def call_ended(self, call: CallRecord) -> None:
        """See `Telemetry.call_ended`."""
        if self._windows:
            self._close_windows(self._monotonic() - 1.0)
        if not _is_error(call):
            if log.isEnabledFor(logging.DEBUG):
                log.debug("call answered", extra=_fields(call))
            return
        if self._may_write(call.reason or call.status):
            internal = call.reason == INTERNAL
            level = logging.ERROR if internal else logging.INFO
            log.log(level, "call failed" if internal else "call refused", extra=_fields(call))

    def evicted(self, tenant: str, entries: int, *, cause: str) -> None:
        """See `Telemetry.evicted`."""
        log.debug("%d entries evicted, cause: %s", entries, cause, extra={"tenant": tenant})

    def fell_back(self, kind: str) -> None:
        """See `Telemetry.fell_back`."""
        if self._may_write(f"fallback {kind}"):
            log.warning("fell back: %s", kind)

    def recall_sampled(self, tenant: str, recall: float, *, queries: int) -> None:
        """See `Telemetry.recall_sampled`."""
        log.debug("recall of %d queries: %.4f", queries, recall, extra={"tenant": tenant})

    def flush(self) -> None:
        """Writes what was left out so far. For the end of the process."""
        self._close_windows(float("inf"))

    def _may_write(self, reason: str) -> bool:
        window = self._windows.get(reason)
        if window is None:
            if len(self._windows) >= REASONS_MAX:
                return False
            window = self._windows[reason] = _Window(self._monotonic())
        if window.written < self._lines_per_second:
            window.written += 1
            return True
        window.left_out += 1
        return False

    def _close_windows(self, until_s: float) -> None:
        ended = [reason for reason, window in self._windows.items() if window.began_s <= until_s]
        for reason in ended:
            window = self._windows.pop(reason)
            if window.left_out:
                log.log(
                    logging.ERROR if reason == INTERNAL else logging.INFO,
                    "more of them were left out of the log",
                    extra={"reason": reason, "calls": window.left_out},
                )


def _is_error(call: CallRecord) -> bool:
    if call.transport == "http":
        return call.status >= "400"
    return call.status != "OK"


def _fields(call: CallRecord) -> dict[str, str | float | None]:
    return {
        "request_id": call.request_id,
        "source": call.source,
        "tenant": call.tenant,
        "key_id": call.key_id,
        "method": call.method[:METHOD_LENGTH_MAX],
        "transport": call.transport,
        "status": call.status,
        "reason": call.reason,
        "error_id": call.error_id,
        "total_ms": _ms(call.total_s),
        "wait_ms": _ms(call.waited_s),
        "work_ms": _ms(call.worked_s),
    }


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
