"""One telemetry made of several."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from recollect_server.domain.telemetry import CallRecord, Telemetry

log = logging.getLogger("recollect.telemetry")


class Telemetries:
    """Tells each of them. What one of them raises reaches neither the others nor the call.

    Args:
        telemetries: Whom to tell, in this order.
    """

    def __init__(self, telemetries: Sequence[Telemetry]) -> None:
        self._telemetries = tuple(telemetries)
        self._broken: set[tuple[str, str]] = set()

    def call_ended(self, call: CallRecord) -> None:
        """See `Telemetry.call_ended`."""
        self._each(lambda telemetry: telemetry.call_ended(call))

    def evicted(self, tenant: str, entries: int, *, cause: str) -> None:
        """See `Telemetry.evicted`."""
        self._each(lambda telemetry: telemetry.evicted(tenant, entries, cause=cause))

    def fell_back(self, kind: str) -> None:
        """See `Telemetry.fell_back`."""
        self._each(lambda telemetry: telemetry.fell_back(kind))

    def recall_sampled(self, tenant: str, recall: float, *, queries: int) -> None:
        """See `Telemetry.recall_sampled`."""
        self._each(lambda telemetry: telemetry.recall_sampled(tenant, recall, queries=queries))

    def _each(self, tell: Callable[[Telemetry], None]) -> None:
        for telemetry in self._telemetries:
            try:
                tell(telemetry)
            except Exception as error:  # the call that it tells of must not fail with it
                self._once(telemetry, error)

    def _once(self, telemetry: Telemetry, error: Exception) -> None:
        """Says it once for each kind of failure: it may be one of every call."""
        kind = (type(telemetry).__name__, type(error).__name__)
        if kind not in self._broken:
            self._broken.add(kind)
            log.error("%s failed; further failures like this are not logged", kind[0], exc_info=error)
