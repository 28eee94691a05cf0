"""What dashboards, alerts and their tests ask for, read from deploy/."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import yaml

from tests.deploy.dockerfile import ROOT

RULES = ROOT / "deploy/prometheus/rules/recollect.yml"
RULE_TESTS = ROOT / "deploy/prometheus/tests/recollect.yml"
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"(?<![\w.$\"])([a-zA-Z_:][\w:]*)(?:\{([^}]*)\})?(?!\s*\(|\w)")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
WORDS = frozenset({"and", "or", "unless", "bool", "offset"})

Node = dict[str, object]


class Asked(NamedTuple):
    """One metric that an expression asks for.

    Attributes:
        name: Of the metric.
        labels: That it has to have.
    """

    name: str
    labels: frozenset[str]


class Alert(NamedTuple):
    """One alerting rule."""

    name: str
    expression: str
    labels: dict[str, str]
    annotations: dict[str, str]


class Target(NamedTuple):
    """One query of a panel."""

    panel: str
    expression: str
    legend: str


def alerts() -> list[Alert]:
    """Of the rules file."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [
        Alert(rule["alert"], rule["expr"], rule["labels"], rule["annotations"])
        for group in groups
        for rule in group["rules"]
    ]


def dashboard(path: Path) -> Node:
    """As Grafana reads it."""
    found: Node = json.loads(path.read_text())
    return found


def panels(board: Node) -> Iterator[Node]:
    """All that show something, those in rows that are closed too."""
    for panel in cast("list[Node]", board["panels"]):
        yield panel
        yield from panels(panel) if panel.get("panels") else ()


def targets() -> list[Target]:
    """All queries of all dashboards."""
    return [
        Target(str(panel["title"]), str(target["expr"]), str(target["legendFormat"]))
        for path in DASHBOARDS
        for panel in panels(dashboard(path))
        for target in cast("list[Node]", panel.get("targets", []))
    ]


def filled(expression: str) -> str:
    """An expression as Grafana sends it when all is chosen."""
    return re.sub(r"\$(?:instance|tenant)\b", ".*", expression).replace("$__rate_interval", "5m")


def asked(expression: str) -> list[Asked]:
    """The metrics of an expression, each with the labels it is chosen by."""
    plain = GROUPING.sub("", filled(expression))
    return [
        Asked(match[1], frozenset(label for label, _, _ in MATCHER.findall(match[2] or "")))
        for match in SELECTOR.finditer(plain)
        if match[1] not in WORDS
    ]


def grouped_by(expression: str) -> set[str]:
    """The labels that an expression groups by."""
    return {label.strip() for listed in GROUPING.findall(expression) for label in listed.split(",")}


def asked_values(expression: str, label: str) -> set[str]:
    """The values that an expression asks of a label, alternatives apart."""
    matchers = MATCHER.findall(expression)
    return {value for name, _, values in matchers if name == label for value in values.split("|")}
