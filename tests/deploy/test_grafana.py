"""The dashboard and its provisioning, read. No package has Grafana, so nothing here has run it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

import pytest
import yaml

from tests.deploy.compose import copy_of_project, make_env, services
from tests.deploy.dockerfile import ROOT
from tests.deploy.rules import DASHBOARDS, Node, asked, dashboard, panels, targets

FOLDER = ROOT / "deploy/grafana"
SOURCES = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
PROVIDERS = yaml.safe_load((FOLDER / "provisioning/dashboards/recollect.yml").read_text())["providers"]
UNITS = frozenset({"Bps", "bytes", "none", "percentunit", "reqps", "s", "short"})
"""Of Grafana's, those that are used; a unit that it does not know is shown behind the number as it stands."""
COLUMNS = 24
BUILT_IN = frozenset({"__rate_interval"})

Box = dict[str, int]

BOARDS = pytest.mark.parametrize(
    "board", [dashboard(path) for path in DASHBOARDS], ids=[p.stem for p in DASHBOARDS]
)


def _shown(board: Node) -> list[Node]:
    return [panel for panel in panels(board) if panel["type"] != "row"]


def _variables(board: Node) -> list[Node]:
    return cast("list[Node]", cast("Node", board["templating"])["list"])


def test_there_is_a_dashboard() -> None:
    """The tests of dashboards look at none."""
    assert DASHBOARDS


@BOARDS
def test_panels_are_told_apart(board: Node) -> None:
    """Two panels have one id, so that Grafana drops or mixes them."""
    ids = [panel["id"] for panel in panels(board)]
    assert len(ids) == len(set(ids))
    titles = [panel["title"] for panel in panels(board)]
    assert all(titles)
    assert len(titles) == len(set(titles))


@BOARDS
def test_every_panel_has_a_unit_and_asks_the_source_that_is_provisioned(board: Node) -> None:
    """A panel shows numbers that nobody can read, or "data source not found"."""
    source = {"type": SOURCES[0]["type"], "uid": SOURCES[0]["uid"]}
    for panel in _shown(board):
        defaults = cast("Node", cast("Node", panel["fieldConfig"])["defaults"])
        assert defaults["unit"] in UNITS, panel["title"]
        queries = cast("list[Node]", panel["targets"])
        assert queries
        assert all(asker["datasource"] == source for asker in [panel, *queries, *_variables(board)])
        references = [query["refId"] for query in queries]
        assert len(references) == len(set(references))


@BOARDS
def test_panels_lie_beside_each_other(board: Node) -> None:
    """A panel covers another one, or sticks out."""
    taken: set[tuple[int, int]] = set()
    for panel in panels(board):
        box = cast("Box", panel["gridPos"])
        assert box["x"] + box["w"] <= COLUMNS
        cells = {(box["x"] + x, box["y"] + y) for x in range(box["w"]) for y in range(box["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


@BOARDS
def test_variables_are_defined_and_used(board: Node) -> None:
    """A query has a `$name` that Grafana does not know, or a choice on top of the page changes nothing."""
    defined = {str(variable["name"]) for variable in _variables(board)}
    used = {name for target in targets() for name in re.findall(r"\$(\w+)", target.expression)}
    assert used - BUILT_IN == defined


@BOARDS
def test_variables_offer_what_metrics_have(board: Node) -> None:
    """A choice on top of the page is empty, since it asks for a label of a metric that no panel shows."""
    shown: dict[str, set[str]] = {}
    for metric in (metric for target in targets() for metric in asked(target.expression)):
        shown.setdefault(metric.name, set()).update(metric.labels)
    for variable in _variables(board):
        query = str(cast("Node", variable["query"])["query"])
        match = re.fullmatch(r"label_values\((\w+), (\w+)\)", query)
        assert match
        assert match[2] == variable["name"]
        assert match[2] in shown[match[1]]


def test_what_is_provisioned_is_where_compose_mounts_it(tmp_path: Path) -> None:
    """Grafana comes up empty: it looks for dashboards, or for Prometheus, where there are none."""
    project = copy_of_project(tmp_path)
    make_env(project)
    grafana = services(project)["grafana"]
    mounts = {
        str(mount["target"]): Path(str(mount["source"])).relative_to(project)
        for mount in cast("list[Node]", grafana["volumes"])
        if mount["type"] == "bind"
    }
    assert mounts[PROVIDERS[0]["options"]["path"]] == Path("deploy/grafana/dashboards")
    assert mounts["/etc/grafana/provisioning"] == Path("deploy/grafana/provisioning")
    home = cast("Node", grafana["environment"])["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{PROVIDERS[0]['options']['path']}/{DASHBOARDS[0].name}"
    assert SOURCES[0]["url"] == "http://prometheus:9090"
