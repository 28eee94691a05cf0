"""A call as telemetry is told of it, for tests to vary."""

from __future__ import annotations

from recollect_server.domain.telemetry import CallRecord

CALL = CallRecord(
    method="Attend",
    transport="grpc",
    tenant="acme",
    key_id="0123456789abcdef",
    status="OK",
    reason="",
    error_id="",
    request_id="r-1",
    source="127.0.0.1",
    traceparent="",
    started_ns=1,
    total_s=0.004,
    waited_s=0.001,
    worked_s=0.002,
    request_bytes=100,
    response_bytes=50,
)
