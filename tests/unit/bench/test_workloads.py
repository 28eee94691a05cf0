"""Every workload, tiny, through a real server; and the command."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from recollect_bench.cli import WORKLOADS, bench
from recollect_bench.result import Outcome
from recollect_bench.scale import Scale

TINY = Scale(data=("mixture",), peers=(), rounds=1, seconds_max=0.3, shrink=512)

APP = typer.Typer()
APP.command()(bench)


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_workload_runs(name: str) -> None:
    """A workload fails, or returns no figure, as `make bench` would find out after a quarter of an hour."""
    outcome: Outcome = importlib.import_module(f"recollect_bench.workloads.{name}").run(TINY)
    assert outcome.figures
    for figure in outcome.figures:
        assert figure.workload == name
        assert figure.recall is None or figure.recall >= 0.9, figure
        assert figure.ratio is None or figure.ratio == figure.ratio


def test_workloads_are_listed() -> None:
    """Nobody can find out what there is to measure."""
    result = CliRunner().invoke(APP, ["--list"])
    assert result.exit_code == 0
    assert all(name in result.output for name in WORKLOADS)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [(["streeming"], "workload"), (["echo", "--data", "x"], "data set"), (["echo", "--peers", "x"], "peer")],
)
def test_unknown_names_are_refused(arguments: list[str], what: str) -> None:
    """A misspelt name measures something else, or nothing."""
    result = CliRunner().invoke(APP, arguments)
    assert result.exit_code == 2
    assert f"there is no {what} '{arguments[-1]}'" in result.output


def test_a_report_is_written(tmp_path: Path) -> None:
    """`--out` leaves no report behind."""
    result = CliRunner().invoke(APP, ["gpu", "--quick", "--no-peers", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "peers.md").read_text()
    assert "## gpu" in page
    assert set(json.loads((tmp_path / "peers.json").read_text())["workloads"]) == {"gpu"}
