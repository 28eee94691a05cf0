"""OpenTelemetry traces: the client's span, then rpc, queue and engine. Off unless an endpoint is set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recollect_server.domain.telemetry import CallRecord

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

SPANS_QUEUED_MAX = 4096
SPANS_PER_EXPORT = 512
EXPORT_EVERY_MS = 2000
EXPORT_TIMEOUT_S = 5
TRACEPARENT_LENGTH_MAX = 256

SERVER_FAULTS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
"""By OpenTelemetry's rules for gRPC servers; what a caller got wrong is no error of the span."""


class TracingTelemetry:
    """Makes three spans of each call that ended: the call, its wait in the queue, its work at the device.

    A call's parent is the span whose `traceparent` the client sent, and the client's decision to sample
    holds. Spans wait for export in a bounded queue of a thread of its own; what does not fit is dropped.

    Args:
        endpoint: OTLP over gRPC, as `http://collector:4317`; `https://` for TLS.
        exporter: In place of an endpoint.
        version: Of the server.

    Raises:
        ValueError: OpenTelemetry is not installed, or not exactly one of endpoint and exporter is given.
    """

    def __init__(
        self, *, endpoint: str | None = None, exporter: SpanExporter | None = None, version: str = ""
    ) -> None:
        if (endpoint is None) == (exporter is None):
            raise ValueError("give one of endpoint and exporter")
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as missing:
            raise ValueError(NOT_INSTALLED) from missing
        self._propagator = TraceContextTextMapPropagator()
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "recollect", "service.version": version}),
            # The process' end is `shutdown`'s business: the server calls it after the last call.
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter if exporter is not None else _otlp(endpoint or ""),
                max_queue_size=SPANS_QUEUED_MAX,
                max_export_batch_size=SPANS_PER_EXPORT,
                schedule_delay_millis=EXPORT_EVERY_MS,
            )
        )
        self._tracer = self._provider.get_tracer("recollect_server", version)

    def call_ended(self, call: CallRecord) -> None:
        """See `Telemetry.call_ended`."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        ended_ns = call.started_ns + _ns(call.total_s)
        span = self._tracer.start_span(
            call.method,
            context=self._parent(call),
            kind=SpanKind.SERVER,
            start_time=call.started_ns,
            attributes=_attributes(call),
        )
        if span.is_recording():
            _mark_faults(span, call)
            self._stages(call, set_span_in_context(span), ended_ns)
        span.end(ended_ns)

    def evicted(self, tenant: str, entries: int, *, cause: str) -> None:
        """See `Telemetry.evicted`. Not a matter of traces."""

    def fell_back(self, kind: str) -> None:
        """See `Telemetry.fell_back`. Not a matter of traces."""

    def recall_sampled(self, tenant: str, recall: float, *, queries: int) -> None:
        """See `Telemetry.recall_sampled`. Not a matter of traces."""

    def flush(self, *, timeout_s: float = EXPORT_TIMEOUT_S) -> bool:
        """Exports what waits; False if that took too long."""
        return self._provider.force_flush(round(timeout_s * 1000))

    def shutdown(self) -> None:
        """Exports what waits, and ends the thread. Blocks for some seconds if nobody takes the spans."""
        self.flush()
        self._provider.shutdown()

    def _parent(self, call: CallRecord) -> Context | None:
        if not call.traceparent or len(call.traceparent) > TRACEPARENT_LENGTH_MAX:
            return None
        return self._propagator.extract({"traceparent": call.traceparent})

    def _stages(self, call: CallRecord, parent: Context, ended_ns: int) -> None:
        """Queue and engine, one after the other.

        A record tells how long each took, not when it began. What else a call does, nearly all of it is
        reading and checking the message, so the time that is left stands before the queue.
        """
        waited_ns, worked_ns = _ns(call.waited_s or 0.0), _ns(call.worked_s or 0.0)
        at_ns = max(call.started_ns, ended_ns - waited_ns - worked_ns)
        for name, seconds, took_ns in (
            ("queue", call.waited_s, waited_ns),
            ("engine", call.worked_s, worked_ns),
        ):
            if seconds is not None:
                stage = self._tracer.start_span(name, context=parent, start_time=at_ns)
                at_ns += took_ns
                stage.end(at_ns)


NOT_INSTALLED = (
    "traces need OpenTelemetry, which is not installed: pip install 'recollect[otel]', or leave "
    "RECOLLECT_TELEMETRY__TRACES_ENDPOINT unset"
)


def _otlp(endpoint: str) -> SpanExporter:
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ImportError as missing:
        raise ValueError(NOT_INSTALLED) from missing
    return OTLPSpanExporter(
        endpoint=endpoint, insecure=not endpoint.startswith("https://"), timeout=EXPORT_TIMEOUT_S
    )


def _attributes(call: CallRecord) -> dict[str, str | int]:
    return {
        "rpc.system": "grpc" if call.transport == "grpc" else call.transport,
        "rpc.method": call.method,
        "recollect.status": call.status,
        "recollect.request_id": call.request_id,
        "recollect.request_bytes": call.request_bytes,
        "recollect.response_bytes": call.response_bytes,
        **({"recollect.tenant": call.tenant} if call.tenant else {}),
        **({"recollect.reason": call.reason} if call.reason else {}),
        **({"recollect.error_id": call.error_id} if call.error_id else {}),
    }


def _mark_faults(span: Span, call: CallRecord) -> None:
    from opentelemetry.trace import Status, StatusCode

    if call.status in SERVER_FAULTS or (call.transport == "http" and call.status.startswith("5")):
        span.set_status(Status(StatusCode.ERROR, call.reason))


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
