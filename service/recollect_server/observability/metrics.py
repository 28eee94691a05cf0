"""Prometheus metrics: counted as calls end, and asked of the server at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from recollect_server.domain.telemetry import CallRecord
from recollect_server.observability.labels import OTHER, STATUSES, TRANSPORTS, FirstSeen, OneOf
from recollect_server.observability.state import ServerState, TenantState

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the buckets: from a decoding step's single question to a heavy batch in a long queue."""

REASONS_MAX = 64
"""The server has about thirty; the bound is there for a mistake."""

UNAUTHENTICATED = frozenset({"UNAUTHENTICATED", "401"})
INTERNAL = "INTERNAL"
EVICTION_CAUSES = ("capacity", "request", "delete")


class PrometheusTelemetry:
    """Counts what it is told, and renders it for Prometheus.

    The number of series is bounded whatever callers send: tenants by `tenant_labels_max`, methods by
    `methods`, statuses by the protocols, reasons by a constant.

    Args:
        methods: Names of RPCs and admin routes; anything else is counted as "unknown".
        version: Of the server.
        tenant_labels_max: So many tenants, the first seen, have series of their own; the rest share "other".
    """

    def __init__(self, methods: Iterable[str], *, version: str, tenant_labels_max: int) -> None:
        # The time at which each counter began would be one more series for each of them.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client left its types out
        self.registry = CollectorRegistry(auto_describe=True)
        self._methods = OneOf(methods)
        self._statuses = OneOf(STATUSES)
        self._transports = OneOf(TRANSPORTS)
        self._tenants = FirstSeen(tenant_labels_max)
        self._reasons = FirstSeen(REASONS_MAX, later="OTHER")
        self._causes = OneOf(EVICTION_CAUSES, unknown=OTHER)
        self._kinds = FirstSeen(REASONS_MAX)
        self._define_counters()
        self._define_histograms()
        build = Info("recollect_build", "Of this server.", registry=self.registry)
        build.info({"version": version})
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        # What a call adds to: found by its labels as they came, so that the common call does no more than
        # look them up. Bounded, since tenants are.
        self._meters: dict[tuple[str, str, str, str], _CallMeter] = {}

    def watch(self, state: ServerState) -> None:
        """From now on each scrape asks this server. Once only."""
        self.registry.register(_StateCollector(state, self._tenants))

    def exposition(self) -> tuple[bytes, str]:
        """Everything in Prometheus' text format, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def call_ended(self, call: CallRecord) -> None:
        """See `Telemetry.call_ended`."""
        key = (call.method, call.status, call.tenant, call.transport)
        meter = self._meters.get(key)
        if meter is None:
            meter = self._meter(key)
        meter.calls.inc()
        meter.duration.observe(call.total_s)
        if call.waited_s is not None:
            meter.wait.observe(call.waited_s)
        if call.worked_s is not None:
            meter.work.observe(call.worked_s)
        if call.request_bytes:
            meter.request_bytes.inc(call.request_bytes)
        if call.response_bytes:
            meter.response_bytes.inc(call.response_bytes)
        if call.reason:
            self._refused_or_failed(call)

    def evicted(self, tenant: str, entries: int, *, cause: str) -> None:
        """See `Telemetry.evicted`."""
        self._evicted.labels(self._tenants.label(tenant), self._causes.label(cause)).inc(entries)

    def fell_back(self, kind: str) -> None:
        """See `Telemetry.fell_back`."""
        self._fallbacks.labels(self._kinds.label(kind)).inc()

    def recall_sampled(self, tenant: str, recall: float, *, queries: int) -> None:
        """See `Telemetry.recall_sampled`."""
        label = self._tenants.label(tenant)
        self._recall_sampled.labels(label).inc(queries)
        self._recall_found.labels(label).inc(queries * recall)

    def _refused_or_failed(self, call: CallRecord) -> None:
        if call.reason != INTERNAL:
            reason, tenant = self._reasons.label(call.reason), self._tenants.label(call.tenant)
            self._refused.labels(reason, tenant).inc()
        if call.status in UNAUTHENTICATED:
            self._authentication_failures.labels(self._transports.label(call.transport)).inc()

    def _meter(self, key: tuple[str, str, str, str]) -> _CallMeter:
        method, status = self._methods.label(key[0]), self._statuses.label(key[1])
        tenant, transport = self._tenants.label(key[2]), self._transports.label(key[3])
        bounded = (method, status, tenant, transport)
        meter = self._meters.get(bounded)
        if meter is None:
            meter = self._meters[bounded] = _CallMeter(
                calls=self._calls.labels(method, status, tenant),
                duration=self._duration.labels(method, transport),
                wait=self._wait.labels(method),
                work=self._work.labels(method),
                request_bytes=self._request_bytes.labels(tenant),
                response_bytes=self._response_bytes.labels(tenant),
            )
            if tenant:  # from 0 on, so that a tenant's first sample is an increase like every other
                self._recall_sampled.labels(tenant)
                self._recall_found.labels(tenant)
        return meter

    def _define_counters(self) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        self._calls = counter(
            "recollect_calls", "Calls that have ended, by gRPC or HTTP status.", "method", "status", "tenant"
        )
        self._request_bytes = counter("recollect_request_bytes", "Of calls' messages.", "tenant")
        self._response_bytes = counter("recollect_response_bytes", "Of calls' answers.", "tenant")
        self._evicted = counter("recollect_evicted_entries", "Entries that went.", "tenant", "cause")
        self._refused = counter(
            "recollect_refused_calls", "Calls that were refused, INTERNAL errors apart.", "reason", "tenant"
        )
        self._fallbacks = counter(
            "recollect_fallbacks", "How often something stood in for what was not to be had.", "kind"
        )
        # Two counters, since a gauge of the last sample would leave out all others between two scrapes.
        self._recall_sampled = counter(
            "recollect_recall_sampled_queries", "Queries compared with exact search.", "tenant"
        )
        self._recall_found = counter(
            "recollect_recall_found_queries",
            "The same, each counted as the share of its true top_k that was found.",
            "tenant",
        )
        self._authentication_failures = counter(
            "recollect_authentication_failures", "Calls without a valid key.", "transport"
        )

    def _define_histograms(self) -> None:
        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(name, text, labels, registry=self.registry, buckets=SECONDS)

        self._duration = histogram(
            "recollect_call_duration_seconds", "From first byte to answer.", "method", "transport"
        )
        self._wait = histogram("recollect_call_wait_seconds", "For its turn at the device.", "method")
        self._work = histogram("recollect_call_work_seconds", "At the device.", "method")


class _CallMeter:
    """The series that calls of one kind add to."""

    __slots__ = ("calls", "duration", "request_bytes", "response_bytes", "wait", "work")

    def __init__(
        self,
        *,
        calls: Counter,
        duration: Histogram,
        wait: Histogram,
        work: Histogram,
        request_bytes: Counter,
        response_bytes: Counter,
    ) -> None:
        self.calls = calls
        self.duration = duration
        self.wait = wait
        self.work = work
        self.request_bytes = request_bytes
        self.response_bytes = response_bytes


class _StateCollector(Collector):
    """Gauges, read when they are wanted."""

    def __init__(self, state: ServerState, tenants: FirstSeen) -> None:
        self._state = state
        self._tenants = tenants

    def describe(self) -> Iterator[Metric]:
        """Nothing: the registry need not ask a server that is not yet up."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """One family after the other."""
        state = self._state
        yield _flag("recollect_ready", "1 if /readyz says so.", state.is_ready())
        yield _flag("recollect_draining", "1 if the server takes no new work.", state.is_draining())
        yield _flag(
            "recollect_registry_reachable",
            "1 if the registry answered last time.",
            state.registry_is_reachable(),
        )
        yield from self._of_devices()
        yield from self._of_tenants()

    def _of_devices(self) -> Iterator[Metric]:
        allocated = GaugeMetricFamily(
            "recollect_device_allocated_bytes", "For keys, values and indexes.", labels=["device"]
        )
        bound = GaugeMetricFamily("recollect_device_limit_bytes", "The bound on them.", labels=["device"])
        for device in self._state.devices():
            allocated.add_metric([device.name], device.bytes_allocated)
            bound.add_metric([device.name], device.bytes_max)
        yield allocated
        yield bound

    def _of_tenants(self) -> Iterator[Metric]:
        sums: dict[str, list[int]] = {}
        for tenant, has in self._state.tenants().items():
            total = sums.setdefault(self._tenants.label(tenant), [0] * len(_TENANT_GAUGES))
            for index, (_, _, read) in enumerate(_TENANT_GAUGES):
                total[index] += read(has)
        for index, (name, text, _) in enumerate(_TENANT_GAUGES):
            family = GaugeMetricFamily(name, text, labels=["tenant"])
            for tenant, total in sums.items():
                family.add_metric([tenant], total[index])
            yield family


def _flag(name: str, text: str, value: bool) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


_TENANT_GAUGES: tuple[tuple[str, str, Callable[[TenantState], int]], ...] = (
    (
        "recollect_tenant_bytes",
        "Allocated for keys, values and indexes, and 4 KiB for each bank.",
        lambda has: has.bytes,
    ),
    ("recollect_tenant_entries", "Live ones.", lambda has: has.entries),
    ("recollect_tenant_namespaces", "Of which this server holds something.", lambda has: has.namespaces),
    ("recollect_tenant_streams", "In all namespaces.", lambda has: has.streams),
    ("recollect_tenant_queued_calls", "Waiting for the device.", lambda has: has.calls_queued),
    ("recollect_tenant_queued_cost", "Multiply-adds of those calls.", lambda has: has.cost_queued),
)
