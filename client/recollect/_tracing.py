"""Traces of calls, where the user's program makes traces with OpenTelemetry. Nothing is imported for it."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from recollect.errors import RecollectError

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

Headers = tuple[tuple[str, str], ...]

_OFF: AbstractContextManager[Headers] = nullcontext(())


def traced(method: str, address: str) -> AbstractContextManager[Headers]:
    """A span around one request, below the span that is current.

    Args:
        method: Full gRPC path.
        address: Of the server.

    Returns:
        A context manager that gives the metadata to send, by which the server continues the trace: none
        where nothing is traced.
    """
    # A program that traces has imported this; one that does not pays for this line alone.
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None or not trace.get_current_span().get_span_context().is_valid:
        return _OFF
    provider: TracerProvider = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):  # nobody set one
        return _OFF
    return _span(provider, method, address)


@contextmanager
def _span(provider: TracerProvider, method: str, address: str) -> Generator[Headers]:
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    service, _, name = method.strip("/").rpartition("/")
    with provider.get_tracer("recollect").start_as_current_span(
        f"{service}/{name}",
        kind=SpanKind.CLIENT,
        attributes={
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": name,
            "server.address": address,
        },
        # What an error says may name streams and namespaces; a trace gets its kind alone.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        headers: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(headers)
        try:
            yield tuple(headers.items())
        except BaseException as error:
            reason = error.reason if isinstance(error, RecollectError) else type(error).__name__
            span.set_attribute("error.type", reason)
            span.set_status(Status(StatusCode.ERROR, reason))
            raise
