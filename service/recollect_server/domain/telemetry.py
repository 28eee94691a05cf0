"""What the server tells about itself while it works. Metrics, logs and traces are made from these records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call that has ended, well or not.

    Attributes:
        method: "Attend", or an admin route as "GET /api/v1/tenants".
        transport: "grpc", "direct", "embedded" or "http".
        tenant: Whose it was; "" where nobody was authenticated, and for operators.
        key_id: Of the key shown; "" where none was valid.
        status: gRPC status name, or the HTTP status as text.
        reason: Machine-readable cause of an error, or "".
        error_id: Of an INTERNAL error, or "".
        request_id: Names the call in logs: the caller's `x-request-id`, or a new one.
        source: Address that it came from, or "".
        traceparent: W3C trace context that the caller sent, or "".
        started_ns: Unix time in ns.
        total_s: From its first byte to its answer.
        waited_s: For its turn at the device; None if it never was to run there.
        worked_s: At the device; None if it never ran.
        request_bytes: Of its message.
        response_bytes: Of its answer.
    """

    method: str
    transport: str
    tenant: str
    key_id: str
    status: str
    reason: str
    error_id: str
    request_id: str
    source: str
    traceparent: str
    started_ns: int
    total_s: float
    waited_s: float | None = None
    worked_s: float | None = None
    request_bytes: int = 0
    response_bytes: int = 0


class Telemetry(Protocol):
    """Takes the records. Called on the event loop: must not block, and never raises."""

    def call_ended(self, call: CallRecord) -> None:
        """A call has ended."""
        ...

    def evicted(self, tenant: str, entries: int, *, cause: str) -> None:
        """Entries went: `cause` is "capacity", "request" or "delete"."""
        ...

    def fell_back(self, kind: str) -> None:
        """Something stood in for what was not to be had: "registry-cache", "device-cpu"."""
        ...

    def recall_sampled(self, tenant: str, recall: float, *, queries: int) -> None:
        """So many queries were compared with exact search: `recall` is the share of the true top_k found."""
        ...


class NoTelemetry:
    """Tells nobody; for embedded use."""

    def call_ended(self, call: CallRecord) -> None:
        """See `Telemetry.call_ended`."""

    def evicted(self, tenant: str, entries: int, *, cause: str) -> None:
        """See `Telemetry.evicted`."""

    def fell_back(self, kind: str) -> None:
        """See `Telemetry.fell_back`."""

    def recall_sampled(self, tenant: str, recall: float, *, queries: int) -> None:
        """See `Telemetry.recall_sampled`."""
