"""PrometheusTelemetry: what is counted, what is asked of the server, and that callers cannot make series."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pytest
from prometheus_client.parser import text_string_to_metric_families

from recollect_server.domain.telemetry import Telemetry
from recollect_server.observability.metrics import REASONS_MAX, PrometheusTelemetry
from recollect_server.observability.state import DeviceState, TenantState
from tests.call_records import CALL


class Server:
    """A server's state, as a test sets it."""

    def __init__(self, tenants: Mapping[str, TenantState] | None = None) -> None:
        self.held = dict(tenants or {})
        self.ready = True

    def tenants(self) -> Mapping[str, TenantState]:
        return self.held

    def devices(self) -> Sequence[DeviceState]:
        return [DeviceState("cpu", bytes_allocated=10, bytes_max=100)]

    def is_ready(self) -> bool:
        return self.ready

    def is_draining(self) -> bool:
        return not self.ready

    def registry_is_reachable(self) -> bool:
        return True


def telemetry(tenant_labels_max: int = 100) -> PrometheusTelemetry:
    return PrometheusTelemetry(
        ["Attend", "GET /api/v1/tenants"], version="0", tenant_labels_max=tenant_labels_max
    )


def samples(of: PrometheusTelemetry) -> dict[tuple[str, tuple[str, ...]], float]:
    """Values by name and label values, the latter in the order of their names."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(of.exposition()[0].decode())
        for sample in family.samples
    }


def test_a_call_is_counted_with_its_times_apart() -> None:
    """An operator could not tell a slow queue from slow work, or one method from another."""
    metrics = telemetry()
    metrics.call_ended(CALL)
    seen = samples(metrics)
    assert seen["recollect_calls_total", ("Attend", "OK", "acme")] == 1
    assert seen["recollect_call_duration_seconds_sum", ("Attend", "grpc")] == 0.004
    assert seen["recollect_call_wait_seconds_sum", ("Attend",)] == 0.001
    assert seen["recollect_call_work_seconds_sum", ("Attend",)] == 0.002
    assert seen["recollect_request_bytes_total", ("acme",)] == 100
    assert seen["recollect_response_bytes_total", ("acme",)] == 50


def test_a_call_that_never_waited_is_in_no_histogram_of_waits() -> None:
    """Calls that need no device would pull the quantiles of the queue down."""
    metrics = telemetry()
    metrics.call_ended(dataclasses.replace(CALL, waited_s=None, worked_s=None))
    assert ("recollect_call_wait_seconds_count", ("Attend",)) not in {
        key for key, value in samples(metrics).items() if value
    }


def test_refusals_are_counted_by_reason() -> None:
    """A tenant over its quota, an overload and a wrong key would look alike; a defect would be no defect."""
    metrics = telemetry()
    metrics.call_ended(dataclasses.replace(CALL, status="RESOURCE_EXHAUSTED", reason="QUOTA_BYTES"))
    metrics.call_ended(
        dataclasses.replace(CALL, tenant="", status="UNAUTHENTICATED", reason="UNAUTHENTICATED")
    )
    metrics.call_ended(
        dataclasses.replace(CALL, tenant="", transport="http", status="401", reason="UNAUTHENTICATED")
    )
    metrics.call_ended(dataclasses.replace(CALL, status="INTERNAL", reason="INTERNAL", error_id="e"))
    seen = samples(metrics)
    assert seen["recollect_refused_calls_total", ("QUOTA_BYTES", "acme")] == 1
    assert seen["recollect_refused_calls_total", ("UNAUTHENTICATED", "")] == 2
    assert seen["recollect_authentication_failures_total", ("grpc",)] == 1
    assert seen["recollect_authentication_failures_total", ("http",)] == 1
    assert seen["recollect_calls_total", ("Attend", "INTERNAL", "acme")] == 1
    assert ("recollect_refused_calls_total", ("INTERNAL", "acme")) not in seen


def test_evictions_and_fallbacks_are_counted() -> None:
    """Entries would vanish, and something would stand in for a GPU, with nobody told."""
    metrics = telemetry()
    metrics.evicted("acme", 7, cause="capacity")
    metrics.evicted("acme", 2, cause="of no kind")
    metrics.fell_back("registry-cache")
    seen = samples(metrics)
    assert seen["recollect_evicted_entries_total", ("capacity", "acme")] == 7
    assert seen["recollect_evicted_entries_total", ("other", "acme")] == 2
    assert seen["recollect_fallbacks_total", ("registry-cache",)] == 1


def test_recall_is_counted_by_the_query() -> None:
    """An operator would see the recall of the last sample alone, or not that a tenant was never compared."""
    metrics = telemetry()
    metrics.call_ended(CALL)
    metrics.call_ended(dataclasses.replace(CALL, tenant=""))
    before = samples(metrics)
    assert ("recollect_recall_sampled_queries_total", ("",)) not in before
    assert before["recollect_recall_sampled_queries_total", ("acme",)] == 0
    assert before["recollect_recall_found_queries_total", ("acme",)] == 0
    metrics.recall_sampled("acme", 0.5, queries=30)
    metrics.recall_sampled("acme", 1.0, queries=10)
    after = samples(metrics)
    assert after["recollect_recall_sampled_queries_total", ("acme",)] == 40
    assert after["recollect_recall_found_queries_total", ("acme",)] == 25


def test_gauges_are_read_at_each_scrape() -> None:
    """Memory, queues and readiness would show what they were when the server started."""
    metrics, server = telemetry(), Server({"acme": TenantState(bytes=5, entries=4, calls_queued=3)})
    metrics.watch(server)
    before = samples(metrics)
    server.ready, server.held["acme"] = False, TenantState(bytes=6, namespaces=1, streams=2, cost_queued=9)
    after = samples(metrics)
    assert (before["recollect_ready", ()], after["recollect_ready", ()]) == (1, 0)
    assert (before["recollect_draining", ()], after["recollect_draining", ()]) == (0, 1)
    assert before["recollect_registry_reachable", ()] == 1
    assert (before["recollect_tenant_bytes", ("acme",)], after["recollect_tenant_bytes", ("acme",)]) == (5, 6)
    assert before["recollect_tenant_queued_calls", ("acme",)] == 3
    assert after["recollect_tenant_queued_cost", ("acme",)] == 9
    assert after["recollect_device_allocated_bytes", ("cpu",)] == 10
    assert after["recollect_device_limit_bytes", ("cpu",)] == 100


def test_ten_thousand_tenants_make_no_more_series_than_a_hundred() -> None:
    """Whoever may create tenants could fill the memory of the server, and of Prometheus."""
    metrics, server = telemetry(tenant_labels_max=100), Server()
    metrics.watch(server)

    def call_as(tenants: range) -> int:
        for number in tenants:
            name = f"t{number}"
            metrics.call_ended(dataclasses.replace(CALL, tenant=name))
            metrics.call_ended(
                dataclasses.replace(CALL, tenant=name, status="UNAVAILABLE", reason="OVERLOADED")
            )
            metrics.evicted(name, 1, cause="request")
            metrics.recall_sampled(name, 0.9, queries=1)
            server.held[name] = TenantState(bytes=1)
        return len(samples(metrics))

    call_as(range(101))  # the last of them is "other"
    assert call_as(range(101)) == call_as(range(10_000))
    seen = samples(metrics)
    assert seen["recollect_tenant_bytes", ("other",)] == 9_900
    assert sum(value for (name, _), value in seen.items() if name == "recollect_calls_total") == 2 * 10_202


def test_what_comes_from_the_wire_makes_no_label() -> None:
    """A caller could make a new series with each call, by inventing methods."""
    metrics = telemetry()
    for number in range(500):
        metrics.call_ended(
            dataclasses.replace(CALL, method=f"M{number}", transport=f"t{number}", status=f"S{number}")
        )
        metrics.call_ended(dataclasses.replace(CALL, status="INTERNAL", reason=f"REASON_{number}"))
        metrics.fell_back(f"kind-{number}")
    seen = samples(metrics)
    assert seen["recollect_calls_total", ("unknown", "unknown", "acme")] == 500
    assert seen["recollect_call_duration_seconds_count", ("unknown", "unknown")] == 500
    assert (
        len({labels for name, labels in seen if name == "recollect_refused_calls_total"}) == REASONS_MAX + 1
    )
    assert len({labels for name, labels in seen if name == "recollect_fallbacks_total"}) == REASONS_MAX + 1


def test_no_tenant_has_a_label_where_none_may() -> None:
    """An operator who wants no tenant names in metrics would get them."""
    metrics = telemetry(tenant_labels_max=0)
    metrics.call_ended(CALL)
    metrics.call_ended(dataclasses.replace(CALL, tenant=""))
    seen = samples(metrics)
    assert seen["recollect_calls_total", ("Attend", "OK", "other")] == 1
    assert seen["recollect_calls_total", ("Attend", "OK", "")] == 1


@pytest.mark.parametrize("name", ["recollect_build_info", "process_resident_memory_bytes", "python_info"])
def test_the_process_tells_about_itself(name: str) -> None:
    """Version, memory and open files of the process would be missing."""
    assert any(name == seen for seen, _ in samples(telemetry()))


def test_two_servers_in_one_process_count_apart() -> None:
    """Embedded servers and tests would share counters, or fail to start a second one."""
    first, second = telemetry(), telemetry()
    first.call_ended(CALL)
    assert ("recollect_calls_total", ("Attend", "OK", "acme")) not in samples(second)


def test_it_is_a_telemetry() -> None:
    """The composition root could not use it (checked by the type checkers)."""
    one: Telemetry = telemetry()
    one.fell_back("device-cpu")
