"""Traces of calls, with OpenTelemetry's own SDK, and nothing where the program does not trace."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import recollect
from recollect._tracing import traced
from recollect.v1 import memory_pb2 as pb
from tests.unit.client.tiny_server import INFO, TinyServer, failing_first, serving

PROVIDER = TracerProvider()


@pytest.fixture(autouse=True)
def provider(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the provider for one test; OpenTelemetry itself would do it once for the whole process."""
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: PROVIDER)


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    processor = SimpleSpanProcessor(exporter)
    PROVIDER.add_span_processor(processor)
    yield exporter
    processor.shutdown()


@pytest.fixture
def server() -> TinyServer:
    return TinyServer()


@pytest.fixture
def url(server: TinyServer, tmp_path: Path) -> Iterator[str]:
    with serving(server, tmp_path) as where:
        yield where


def context_of(span: ReadableSpan) -> trace.SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def test_the_server_can_go_on_with_the_trace(
    server: TinyServer, url: str, spans: InMemorySpanExporter
) -> None:
    """A slow step of a program could not be followed into the memory server."""

    async def call() -> None:
        async with recollect.connect_async(url) as client:
            await client.server_info()

    with PROVIDER.get_tracer("test").start_as_current_span("step") as step:
        with recollect.connect(url) as client:
            client.server_info()
        asyncio.run(call())
    *calls, _ = spans.get_finished_spans()
    assert len(calls) == 2
    for span, sent in zip(calls, server.metadata, strict=True):
        assert span.name == "recollect.v1.NamespaceService/GetServerInfo"
        assert span.kind is trace.SpanKind.CLIENT
        assert span.parent == step.get_span_context()
        context = context_of(span)
        assert sent["traceparent"] == (
            f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        )


def test_each_attempt_has_a_span_and_failures_say_why(
    server: TinyServer, url: str, spans: InMemorySpanExporter
) -> None:
    """Retries would hide in a trace as one slow call."""
    detail = pb.ErrorDetail(reason="OVERLOADED", retry_after_ms=1)
    server.handlers["GetServerInfo"] = failing_first(1, INFO, detail=detail)
    with PROVIDER.get_tracer("test").start_as_current_span("step"), recollect.connect(url) as client:
        client.server_info()
    failed, succeeded, _ = spans.get_finished_spans()
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert failed.attributes is not None
    assert failed.attributes["error.type"] == "OVERLOADED"
    assert succeeded.status.is_ok


def test_messages_of_errors_stay_out_of_traces(
    server: TinyServer, url: str, spans: InMemorySpanExporter
) -> None:
    """Names of streams and namespaces would leave with the traces."""
    server.handlers["GetServerInfo"] = failing_first(9, INFO, code=grpc.StatusCode.NOT_FOUND)
    with (
        PROVIDER.get_tracer("test").start_as_current_span("step"),
        recollect.connect(url) as client,
        pytest.raises(recollect.NotFoundError, match="not now"),
    ):
        client.server_info()
    assert "not now" not in "".join(span.to_json() for span in spans.get_finished_spans())


def test_without_a_current_span_nothing_is_traced(
    server: TinyServer, url: str, spans: InMemorySpanExporter
) -> None:
    """Every call would begin a trace that nobody asked for."""
    with recollect.connect(url) as client:
        client.server_info()
    assert not spans.get_finished_spans()
    assert "traceparent" not in server.metadata[0]


def test_without_a_provider_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls would pay for spans that go nowhere."""
    monkeypatch.setattr(trace, "get_tracer_provider", trace.ProxyTracerProvider)
    with PROVIDER.get_tracer("test").start_as_current_span("step"), traced("/s/M", "a") as headers:
        assert headers == ()


def test_calls_import_no_opentelemetry() -> None:
    """Programs that do not trace would load it, or fail where it is not installed."""
    code = (
        "import sys, recollect\n"
        "client = recollect.connect('grpc://127.0.0.1:1', retries=0)\n"
        "try:\n"
        "    client.server_info(timeout_s=0.001)\n"
        "except recollect.RecollectError:\n"
        "    print([name for name in sys.modules if name.startswith('opentelemetry')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
