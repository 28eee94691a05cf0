"""TracingTelemetry: spans with the right times and parents, made of records of calls that have ended."""

from __future__ import annotations

import dataclasses
import sys

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from recollect_server.domain.telemetry import CallRecord
from recollect_server.observability.traces import SPANS_QUEUED_MAX, TracingTelemetry
from tests.call_records import CALL as ANSWERED

TRACE, CLIENT_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
STARTED_NS = 1_700_000_000_000_000_000

CALL = dataclasses.replace(
    ANSWERED,
    traceparent=f"00-{TRACE}-{CLIENT_SPAN}-01",
    started_ns=STARTED_NS,
    total_s=0.010,
    waited_s=0.003,
    worked_s=0.005,
)


def spans_of(*calls: CallRecord) -> dict[str, ReadableSpan]:
    """What the calls become, by name; the last of a name."""
    exporter = InMemorySpanExporter()
    tracing = TracingTelemetry(exporter=exporter)
    for call in calls:
        tracing.call_ended(call)
    tracing.shutdown()
    return {span.name: span for span in exporter.get_finished_spans()}


def test_a_call_becomes_rpc_queue_and_engine_below_the_clients_span() -> None:
    """A trace would not show whose call it was, or where its time went."""
    spans = spans_of(CALL)
    rpc, queue, engine = (spans[name] for name in ("Attend", "queue", "engine"))
    assert rpc.kind is SpanKind.SERVER
    assert rpc.parent is not None
    assert queue.parent is not None
    assert engine.parent is not None
    assert format(rpc.parent.span_id, "016x") == CLIENT_SPAN
    assert rpc.context is not None
    assert queue.parent.span_id == engine.parent.span_id == rpc.context.span_id
    for span in (rpc, queue, engine):
        assert span.context is not None
        assert format(span.context.trace_id, "032x") == TRACE


def test_spans_have_the_times_of_the_record() -> None:
    """Spans would begin when the record was made, not when the call did."""
    spans = spans_of(CALL)
    rpc, queue, engine = (spans[name] for name in ("Attend", "queue", "engine"))
    assert (rpc.start_time, rpc.end_time) == (STARTED_NS, STARTED_NS + 10_000_000)
    assert (queue.start_time, queue.end_time) == (STARTED_NS + 2_000_000, STARTED_NS + 5_000_000)
    assert (engine.start_time, engine.end_time) == (queue.end_time, rpc.end_time)


def test_a_call_that_never_ran_has_no_engine() -> None:
    """A refused call would seem to have taken the device."""
    waited = dataclasses.replace(CALL, worked_s=None, status="DEADLINE_EXCEEDED", reason="DEADLINE_EXCEEDED")
    assert set(spans_of(waited)) == {"Attend", "queue"}
    assert set(spans_of(dataclasses.replace(waited, waited_s=None))) == {"Attend"}


def test_defects_are_errors_and_callers_mistakes_are_not() -> None:
    """A search for failed traces would find every mistyped name, or no defect at all."""
    wrong = dataclasses.replace(CALL, status="NOT_FOUND", reason="NAMESPACE_NOT_FOUND")
    assert spans_of(wrong)["Attend"].status.status_code is StatusCode.UNSET
    failed = dataclasses.replace(CALL, status="INTERNAL", reason="INTERNAL", error_id="e-1")
    span = spans_of(failed)["Attend"]
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["recollect.error_id"] == "e-1"
    http = dataclasses.replace(CALL, transport="http", method="GET /readyz", status="503")
    assert spans_of(http)["GET /readyz"].status.status_code is StatusCode.ERROR


@pytest.mark.parametrize("sent", ["", "nonsense", f"00-{'0' * 32}-{CLIENT_SPAN}-01", "0" * 100_000])
def test_without_a_parent_the_call_begins_a_trace(sent: str) -> None:
    """A malformed header would lose the trace, or fail the call."""
    assert spans_of(dataclasses.replace(CALL, traceparent=sent))["Attend"].parent is None


def test_what_the_client_does_not_sample_is_not_exported() -> None:
    """A client that samples one call in a thousand would get a trace for each."""
    assert not spans_of(dataclasses.replace(CALL, traceparent=f"00-{TRACE}-{CLIENT_SPAN}-00"))


def test_times_that_do_not_add_up_stay_within_the_call() -> None:
    """Clocks of different grain would make a queue that begins before its call."""
    spans = spans_of(dataclasses.replace(CALL, total_s=0.001))
    assert spans["queue"].start_time == STARTED_NS


def test_spans_wait_in_a_bounded_queue() -> None:
    """A collector that is away would fill the server's memory."""
    exporter = InMemorySpanExporter()
    tracing = TracingTelemetry(exporter=exporter)
    try:
        for _ in range(SPANS_QUEUED_MAX):
            tracing.call_ended(CALL)  # three spans each
    finally:
        tracing.shutdown()
    assert 0 < len(exporter.get_finished_spans()) <= 3 * SPANS_QUEUED_MAX


def test_without_opentelemetry_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator would get an ImportError of a package that they never heard of."""
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"recollect\[otel\]"):
        TracingTelemetry(endpoint="http://127.0.0.1:4317")


def test_it_wants_one_way_out() -> None:
    """Spans would go nowhere, with nobody told."""
    with pytest.raises(ValueError, match="one of endpoint and exporter"):
        TracingTelemetry()
    with pytest.raises(ValueError, match="one of endpoint and exporter"):
        TracingTelemetry(endpoint="http://127.0.0.1:4317", exporter=InMemorySpanExporter())


def test_a_collector_that_is_away_disturbs_nobody() -> None:
    """The server would fail, or hang at its end, because nobody takes its traces."""
    tracing = TracingTelemetry(endpoint="http://127.0.0.1:9", version="0")
    tracing.call_ended(CALL)
    tracing.evicted("acme", 1, cause="request")
    tracing.fell_back("registry-cache")
    tracing.shutdown()
