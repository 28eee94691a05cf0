"""`recollect serve`, before the server: what libraries read of the environment when they are loaded."""

from __future__ import annotations

import os

import pytest
import typer
from typer.testing import CliRunner

from recollect_server import cli, pollers, serving

DEFAULTS = {
    "OMP_WAIT_POLICY": "passive",
    "OPENBLAS_THREAD_TIMEOUT": "4",
    "GRPC_VERBOSITY": "NONE",
    "GRPC_EXPERIMENTS": "-event_engine_poller_for_python",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of a server that is not started after all."""
    environment: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(serving, "run", lambda options: 0)
    monkeypatch.setattr(pollers, "version", lambda package: "1.80.0")
    return environment


def test_threads_that_wait_are_told_to_sleep(environment: dict[str, str]) -> None:
    """Threads of NumPy and FAISS spin on the cores that a trainer, or the server itself, could use."""
    with pytest.raises(typer.Exit):
        cli.serve(dev=True)
    assert environment.items() >= DEFAULTS.items()


@pytest.mark.parametrize(
    ("installed", "experiments"),
    [
        ("1.75.1", ""),
        ("1.76.0", "-event_engine_poller_for_python"),
        ("1.82.3", "-event_engine_poller_for_python"),
        ("1.83.0", ""),
        ("1.90.0rc1", ""),
        ("2.0.0", ""),
    ],
)
def test_grpc_is_told_only_what_it_knows(
    installed: str, experiments: str, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log of JSON begins with a complaint of gRPC about a setting that it does not have any more."""
    monkeypatch.setattr(pollers, "version", lambda package: installed)
    with pytest.raises(typer.Exit):
        cli.serve(dev=True)
    assert environment["GRPC_EXPERIMENTS"] == experiments


def test_what_the_operator_set_stays(environment: dict[str, str]) -> None:
    """An operator who knows the machine better cannot tell the libraries."""
    environment.update(dict.fromkeys(DEFAULTS, "theirs"))
    with pytest.raises(typer.Exit):
        cli.serve(dev=True, threads=2)
    threads = {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}
    assert environment.items() >= {**dict.fromkeys(DEFAULTS, "theirs"), **threads}.items()


def test_a_data_dir_of_nothing_is_told_apart(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script whose variable is not set has keys and tenants written to wherever it was started."""
    given: list[dict[str, object]] = []
    monkeypatch.setattr(serving, "run", given.append)
    app = typer.Typer()
    app.command()(cli.serve)
    assert CliRunner().invoke(app, ["--data-dir", ""]).exit_code == 0
    assert given == [{"data_dir": ""}]
