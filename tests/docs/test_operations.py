"""docs/operations.md against the code: every setting, quota, metric, field, reason, alert, and no other."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence

import yaml
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel

from recollect_server.admin.cli import options
from recollect_server.domain import errors
from recollect_server.domain.limits import Limits
from recollect_server.domain.tenants import Quotas
from recollect_server.observability import logs
from recollect_server.observability.metrics import PrometheusTelemetry
from recollect_server.observability.state import DeviceState, TenantState
from recollect_server.rpc.status import STATUS
from recollect_server.settings import Settings
from tests.call_records import CALL as ANSWERED
from tests.docs.pages import ROOT, anchor, code, headings, page, rows, section

OPERATIONS = page("docs/operations.md")
RULES = ROOT / "deploy/prometheus/rules/recollect.yml"
CALL = dataclasses.replace(ANSWERED, status="UNAUTHENTICATED", reason="UNAUTHENTICATED")


def _shown(default: object) -> str:
    """A default as the page writes it."""
    if default is None:
        return "none"
    if isinstance(default, str):
        return default
    return f"{default:g}" if isinstance(default, float) else json.dumps(default)


def _settings(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        variable = f"{prefix}{name.upper()}"
        if isinstance(default, BaseModel):
            yield from _settings(type(default), f"{variable}__")
        elif isinstance(default, Limits):
            for each in dataclasses.fields(Limits):
                yield f"{variable}__{each.name.upper()}", _shown(each.default)
        else:
            yield variable, _shown(default)


def test_every_setting_is_there_with_its_default() -> None:
    """An operator looks for a setting that is not on the page, or sets one that does not exist."""
    listed = rows(section(OPERATIONS, "Settings"), ["variable", "default", "meaning"])
    said = {code(variable)[0]: default.strip("`") for variable, default, _ in listed}
    assert len(said) == len(listed), "a variable is listed twice"
    assert said == dict(_settings(Settings, "RECOLLECT_"))
    assert all(meaning for *_, meaning in listed)


def test_variables_named_anywhere_exist() -> None:
    """A page tells an operator to set a variable that nobody reads."""
    known = {name for name, _ in _settings(Settings, "RECOLLECT_")}
    known |= {options.URL_VARIABLE, options.KEY_VARIABLE}
    for name in ("README.md", "docs/operations.md", "docs/security.md", ".env.example", "docker-compose.yml"):
        for variable in re.findall(r"\bRECOLLECT_[A-Z_]+[A-Z]\b(?!__\*)", page(name)):
            ours = variable in known or variable in ("RECOLLECT_PORT", "RECOLLECT_ADMIN_PORT")
            assert ours or f"{variable}__" in " ".join(known), f"{name}: {variable}"


def test_every_quota_is_there_with_its_default() -> None:
    """An operator does not know what a tenant may use if nothing is said."""
    listed = rows(section(OPERATIONS, "Quotas"), ["quota", "default", "what it bounds"])
    said = {code(quota)[0]: default for quota, default, _ in listed}
    assert said == {each.name: _shown(each.default) for each in dataclasses.fields(Quotas)}


def _leaves(of: type[errors.RecollectError]) -> set[type[errors.RecollectError]]:
    return set.union(*(_leaves(each) for each in of.__subclasses__())) if of.__subclasses__() else {of}


def test_every_refusal_is_explained() -> None:
    """A customer asks what a reason means, and the page does not know it, or says another status."""
    listed = rows(section(OPERATIONS, "What a refusal means"), ["reason", "status", "what to do"])
    said = {reason: status for cell, status, _ in listed for reason in code(cell)}
    bounds = [each.name.removesuffix("_max") for each in dataclasses.fields(Quotas) if each.name != "weight"]
    expected = {f"QUOTA_{name.upper()}": errors.QuotaExceededError for name in bounds}
    kinds = (errors.ResourceExhaustedError, errors.UnavailableError, errors.DeadlineExceededError)
    leaves = set.union(*map(_leaves, kinds)) - {errors.QuotaExceededError}
    statuses = {reason: STATUS[error].name for reason, error in expected.items()}
    statuses |= {error.reason: STATUS[error].name for error in leaves}
    assert said == statuses


class _Server:
    """The state of a server with one tenant."""

    def tenants(self) -> Mapping[str, TenantState]:
        return {"acme": TenantState()}

    def devices(self) -> Sequence[DeviceState]:
        return [DeviceState("cpu", bytes_allocated=1, bytes_max=2)]

    def is_ready(self) -> bool:
        return True

    def is_draining(self) -> bool:
        return False

    def registry_is_reachable(self) -> bool:
        return True


def _exposed() -> dict[str, set[str]]:
    """Metrics by name with their labels, as a server exposes them that all has happened to."""
    metrics = PrometheusTelemetry(["Attend"], version="0", tenant_labels_max=1)
    metrics.watch(_Server())
    metrics.call_ended(CALL)
    metrics.evicted("acme", 1, cause="request")
    metrics.fell_back("registry-cache")
    metrics.recall_sampled("acme", 0.9, queries=1)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(metrics.exposition()[0].decode()):
        name = family.name if family.type == "histogram" else family.samples[0].name
        if name.startswith("recollect_"):
            found[name] = {label for sample in family.samples for label in sample.labels} - {"le"}
    return found


def test_every_metric_is_there_with_its_labels() -> None:
    """Somebody who writes a query looks for a metric that is not on the page, or uses one that is gone."""
    listed = rows(section(OPERATIONS, "Metrics"), ["metric", "labels", "meaning"])
    said = {code(metric)[0]: set(labels.split(", ")) if labels else set() for metric, labels, _ in listed}
    assert said == _exposed()


def test_every_field_of_the_log_is_there() -> None:
    """Somebody who reads logs meets a field that the page does not explain."""
    listed = rows(section(OPERATIONS, "Logs"), ["field", "meaning"])
    said = [field for cell, _ in listed for field in code(cell)]
    assert sorted(said) == sorted([*logs.FIELDS, "exception"])


def _alerts() -> dict[str, Mapping[str, Mapping[str, str]]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"]: rule for group in groups for rule in group["rules"]}


def test_every_alert_has_a_runbook() -> None:
    """Somebody is woken, and the link leads nowhere; or the page explains an alert that is gone."""
    alerts = _alerts()
    listed = [name for name in headings(OPERATIONS) if re.fullmatch(r"Recollect[A-Z]\w+", name)]
    assert sorted(listed) == sorted(alerts)
    for name, rule in alerts.items():
        file, _, wanted = rule["annotations"]["runbook"].partition("#")
        assert wanted == anchor(name)
        text = section(page(file), name)
        assert text.lstrip().startswith(f"*{rule['labels']['severity']}.*"), name
        assert "- Look at:" in text, name
        assert "- Do:" in text, name


def test_metrics_named_anywhere_exist() -> None:
    """A query on the page asks for a metric that is not exposed."""
    parts = ("", "_bucket", "_sum", "_count")
    known = {f"{name}{part}" for name in _exposed() for part in parts}
    named = set(re.findall(r"\brecollect_(?!server|torch)[a-z_]+\b", OPERATIONS))
    assert named <= known
