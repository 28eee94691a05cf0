"""Scrape configuration, alerts and dashboards against a server, a Redis and a Prometheus that ran."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from recollect_server.domain import errors
from recollect_server.observability.labels import STATUSES
from tests.contract import messages
from tests.deploy.prometheus_server import (
    FOLDER,
    Found,
    PrometheusServer,
    promtool,
    require_prometheus,
    write_configuration,
)
from tests.deploy.rules import (
    RULE_TESTS,
    RULES,
    Alert,
    Target,
    alerts,
    asked,
    asked_values,
    filled,
    grouped_by,
    targets,
)
from tests.installation import Installation
from tests.redis_server import RedisServer, require_redis
from tests.server_process import ServerProcess

METRICS_KEY = "for-prometheus-alone"
ADDED_BY_PROMETHEUS = frozenset({"instance", "job"})
NAMESPACE = "watched"
WELL: set[str] = set()
CUT_OFF = {"RecollectNotReady", "RecollectRegistryUnreachable"}
GONE = {"RecollectDown"}
SETTLE_STEPS, STEP_S = 100, 0.1


class Watch(NamedTuple):
    """What was seen of a server that was called, lost its registry, and then was killed.

    Attributes:
        exposition: What /metrics said before the end.
        panels: Answers to the dashboards' queries.
        well: Alerts whose expression held while all was well.
        cut_off: The same without a registry.
        gone: The same without a server.
        rules: Health and state of each rule at the end.
    """

    exposition: str
    panels: Mapping[str, list[Found]]
    well: set[str]
    cut_off: set[str]
    gone: set[str]
    rules: Mapping[str, tuple[str, str]]

    @property
    def labels(self) -> dict[str, set[str]]:
        """Of each series' name."""
        found: dict[str, set[str]] = {"up": set()}
        for family in text_string_to_metric_families(self.exposition):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
        return found


def _work(installation: Installation, tenant: str) -> str:
    """Calls of all kinds that end well, and of some that do not; returns the tenant's token."""
    token = installation.tenant(tenant, namespaces_max=1)
    calls = [
        ("CreateNamespace", messages.create(NAMESPACE), "OK"),
        *[("Add", messages.add(NAMESPACE, tokens=messages.CAPACITY), "OK")] * 2,
        ("Attend", messages.attend(NAMESPACE), "OK"),
        ("Search", messages.search(NAMESPACE), "OK"),
        ("Evict", messages.evict(NAMESPACE), "OK"),
        ("CreateNamespace", messages.create("one-too-many"), "RESOURCE_EXHAUSTED"),
        ("Attend", messages.attend("nowhere"), "NOT_FOUND"),
    ]
    for method, request, status in calls:
        assert installation.rpc(method, request, token=token).code == status
    assert installation.rpc("Attend", messages.attend(NAMESPACE), token="nobody's").code == "UNAUTHENTICATED"
    assert installation.admin("GET", "/api/v1/tenants", token="nobody's").status_code == 401
    return token


def _holding(prometheus: PrometheusServer, expected: set[str]) -> set[str]:
    """The alerts whose expression holds, at last: a scrape on a busy machine may come late."""
    found: set[str] = set()
    for _ in range(SETTLE_STEPS):
        found = {alert.name for alert in alerts() if prometheus.query(alert.expression)}
        if found == expected:
            break
        time.sleep(STEP_S)
    return found


@pytest.fixture(scope="module")
def watch() -> Iterator[Watch]:
    """Runs everything once."""
    require_redis()
    require_prometheus()
    with ExitStack() as exits:
        redis = exits.enter_context(RedisServer())
        environment = {"RECOLLECT_REGISTRY__URL": redis.url, "RECOLLECT_ADMIN__METRICS_KEY": METRICS_KEY}
        server = exits.enter_context(ServerProcess(environment=environment))
        installation = exits.enter_context(Installation(server))
        target = httpx.URL(server.admin_url).netloc.decode()
        prometheus = exits.enter_context(PrometheusServer(target, METRICS_KEY))
        _work(installation, "acme")
        prometheus.wait_until(lambda seen: bool(seen.query('recollect_calls_total{tenant="acme"}')))
        token = _work(installation, "globex")
        prometheus.wait_until(lambda seen: bool(seen.query('recollect_calls_total{tenant="globex"}')))
        well = _holding(prometheus, WELL)

        redis.kill()
        attend = messages.attend(NAMESPACE)

        def stands_in(seen: PrometheusServer) -> bool:
            installation.rpc("Attend", attend, token=token)
            return bool(seen.query("increase(recollect_fallbacks_total[5m]) and on () recollect_ready == 0"))

        prometheus.wait_until(stands_in)
        panels = {target.expression: prometheus.query(filled(target.expression)) for target in targets()}
        cut_off = _holding(prometheus, CUT_OFF)
        exposition = installation.admin("GET", "/metrics", token=METRICS_KEY).text

        server.kill()
        prometheus.wait_until(lambda seen: seen.rules()["RecollectDown"][1] == "pending")
        gone = _holding(prometheus, GONE)
        yield Watch(exposition, panels, well, cut_off, gone, prometheus.rules())


def test_the_configuration_is_one(tmp_path: Path) -> None:
    """Prometheus does not start with deploy/prometheus/prometheus.yml."""
    require_prometheus()
    path = write_configuration(tmp_path, target="server:8080", key="secret", port=9090)
    checked = promtool("check", "config", str(path))
    assert checked.returncode == 0, checked.stderr
    original = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert [FOLDER / pattern for pattern in original["rule_files"]] == [FOLDER / "rules/*.yml"]


def test_rules_are_rules_and_do_what_their_tests_say() -> None:
    """An alert cannot be loaded, fires when it must not, or does not when it must."""
    require_prometheus()
    for words in (("check", "rules", str(RULES)), ("test", "rules", str(RULE_TESTS))):
        checked = promtool(*words)
        assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_has_a_test() -> None:
    """Nobody has seen an alert fire, or be silent."""
    tested = {
        (check["alertname"], bool(check["exp_alerts"]))
        for case in yaml.safe_load(RULE_TESTS.read_text())["tests"]
        for check in case["alert_rule_test"]
    }
    assert tested == {(alert.name, fires) for alert in alerts() for fires in (False, True)}


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)
def test_an_alert_says_whom_to_wake_and_what_to_do(alert: Alert) -> None:
    """Who is woken finds no word about this alert, or is woken for what could wait."""
    assert alert.labels["severity"] in {"page", "ticket"}
    assert set(alert.annotations) == {"summary", "runbook"}
    page, _, anchor = alert.annotations["runbook"].partition("#")
    headings = re.findall(r"^#+ (.+)$", (RULES.parents[3] / page).read_text(), re.MULTILINE)
    assert anchor in {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert.name)
def test_alerts_ask_for_values_that_the_server_has(alert: Alert) -> None:
    """An alert waits for a status or a reason that no server ever gives, and stays silent."""
    reasons = {getattr(error, "reason", None) for error in vars(errors).values()}
    assert asked_values(alert.expression, "status") <= STATUSES
    assert asked_values(alert.expression, "reason") <= reasons


@pytest.mark.e2e
def test_the_exposition_passes_the_linter(watch: Watch) -> None:
    """A metric is named or typed so that Prometheus' own tools warn of it."""
    checked = promtool("check", "metrics", stdin=watch.exposition)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.e2e
@pytest.mark.parametrize(
    "expression",
    [pytest.param(alert.expression, id=alert.name) for alert in alerts()]
    + [pytest.param(target.expression, id=f"{target.panel}-{target.legend}") for target in targets()],
)
def test_expressions_ask_for_what_a_real_server_exposes(watch: Watch, expression: str) -> None:
    """A metric or label was renamed, and an alert or panel is silent for ever."""
    wanted = asked(expression)
    assert wanted
    for metric in wanted:
        assert metric.name in watch.labels
        assert metric.labels <= watch.labels[metric.name] | ADDED_BY_PROMETHEUS
    there = set[str]().union(ADDED_BY_PROMETHEUS, *(watch.labels[metric.name] for metric in wanted))
    assert grouped_by(expression) <= there


@pytest.mark.e2e
def test_the_rules_tests_feed_what_a_real_server_exposes(watch: Watch) -> None:
    """The alerts are tested with series that no server has."""
    cases = yaml.safe_load(RULE_TESTS.read_text())["tests"]
    fed = [asked(series["series"])[0] for case in cases for series in case["input_series"]]
    assert fed
    for metric in fed:
        assert metric.labels <= watch.labels[metric.name] | ADDED_BY_PROMETHEUS, metric.name


@pytest.mark.e2e
@pytest.mark.parametrize("target", targets(), ids=lambda target: f"{target.panel}-{target.legend}")
def test_every_panel_shows_what_happened(watch: Watch, target: Target) -> None:
    """A panel of the dashboard stays empty although there is something to show, or its legend does."""
    found = watch.panels[target.expression]
    assert found
    assert not [series for series in found if math.isnan(series.value)]
    labels = set(re.findall(r"\{\{(\w+)\}\}", target.legend))
    assert all(labels <= series.labels.keys() for series in found)


@pytest.mark.e2e
def test_alerts_follow_what_happens(watch: Watch) -> None:
    """An alert is raised while all is well, or none when the registry or the server is gone."""
    assert (watch.well, watch.cut_off, watch.gone) == (WELL, CUT_OFF, GONE)
    assert {health for health, _ in watch.rules.values()} == {"ok"}
    assert watch.rules["RecollectDown"][1] == "pending"


@pytest.mark.e2e
def test_metrics_hold_no_secret(watch: Watch) -> None:
    """Who may read metrics reads a key."""
    assert METRICS_KEY not in watch.exposition
    assert not re.search(r"rk_[0-9a-f]{16}", watch.exposition)
