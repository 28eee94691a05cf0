"""A line for each call that did not go well, and a bound on their number."""

from __future__ import annotations

import logging

from recollect_server.domain.telemetry import CallRecord
from recollect_server.observability.line_limit import LineLimit

log = logging.getLogger("recollect.calls")

INTERNAL = "INTERNAL"
METHOD_LENGTH_MAX = 128
"""An unknown method's name is the caller's choice."""


class LoggingTelemetry:
    """Writes refused and failed calls to the log: INFO, an INTERNAL error ERROR; all others DEBUG.

    Args:
        limit: How many of each reason; a flood of refusals must not fill a disk. None: one of its own.
    """

    def __init__(self, limit: LineLimit | None = None) -> None:
        self._limit = limit or LineLimit()

    def call_ended(self, call: CallRecord) -> None:
        """See `Telemetry.call_ended`."""
        self._limit.catch_up()
        if not _is_error(call):
            if log.isEnabledFor(logging.DEBUG):
                log.debug("call answered", extra=_fields(call))
            return
        internal = call.reason == INTERNAL
        level = logging.ERROR if internal else logging.INFO
        if self._limit.may_write(call.reason or call.status, level=level):
            log.log(level, "call failed" if internal else "call refused", extra=_fields(call))

    def evicted(self, tenant: str, entries: int, *, cause: str) -> None:
        """See `Telemetry.evicted`."""
        log.debug("%d entries evicted, cause: %s", entries, cause, extra={"tenant": tenant})

    def fell_back(self, kind: str) -> None:
        """See `Telemetry.fell_back`."""
        if self._limit.may_write(f"fallback {kind}", level=logging.WARNING):
            log.warning("fell back: %s", kind)

    def recall_sampled(self, tenant: str, recall: float, *, queries: int) -> None:
        """See `Telemetry.recall_sampled`."""
        log.debug("recall of %d queries: %.4f", queries, recall, extra={"tenant": tenant})

    def flush(self) -> None:
        """Writes what was left out so far. For the end of the process."""
        self._limit.flush()


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
