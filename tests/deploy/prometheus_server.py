"""A real Prometheus with the repository's configuration and rules, on a free port of loopback."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import httpx
import pytest
import yaml

from tests.deploy.dockerfile import ROOT

FOLDER = ROOT / "deploy/prometheus"
START_S = 60.0
STEP_S = 0.1
INTERVAL = "1s"


def require_prometheus() -> None:
    """Skips the test, and says what to install, where there is no Prometheus."""
    if shutil.which("prometheus") is None or shutil.which("promtool") is None:
        pytest.skip("no prometheus: install it (Debian's package is prometheus)")


def promtool(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs promtool."""
    return subprocess.run(["promtool", *words], input=stdin, capture_output=True, text=True, check=False)


def write_configuration(folder: Path, *, target: str, key: str, port: int) -> Path:
    """The repository's configuration, for other addresses and a shorter interval; the rules beside it."""
    shutil.copytree(FOLDER / "rules", folder / "rules")
    configuration = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    intervals = ("scrape_interval", "scrape_timeout", "evaluation_interval")
    configuration["global"] = dict.fromkeys(intervals, INTERVAL)
    key_file = folder / "metrics_key"
    key_file.write_text(key)
    for job, address in (("recollect", target), ("prometheus", f"127.0.0.1:{port}")):
        (scrape,) = (found for found in configuration["scrape_configs"] if found["job_name"] == job)
        scrape["static_configs"] = [{"targets": [address]}]
        if "authorization" in scrape:
            scrape["authorization"]["credentials_file"] = str(key_file)
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(configuration))
    return path


class Found(NamedTuple):
    """One series of an answer.

    Attributes:
        labels: Without the name.
        value: "NaN" and the like as Python reads them.
    """

    labels: dict[str, str]
    value: float


class PrometheusServer:
    """A process that scrapes one server.

    Args:
        target: Host and port of the server's /metrics.
        key: What it shows there.
    """

    def __init__(self, target: str, key: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rc-prometheus-")
        folder = Path(self._folder.name)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port: int = free.getsockname()[1]
        path = write_configuration(folder, target=target, key=key, port=port)
        self._log = folder / "log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={path}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=START_S)

    def query(self, expression: str) -> list[Found]:
        """What an expression is now."""
        answer = self._http.get("/api/v1/query", params={"query": expression})
        if answer.status_code == 503:  # it reads its log still
            answer.raise_for_status()
        assert answer.is_success, f"{expression}: {answer.text}"
        result: list[dict[str, object]] = answer.json()["data"]["result"]
        return [_found(series) for series in result]

    def rules(self) -> dict[str, tuple[str, str]]:
        """Each alert's health and state."""
        groups = self._http.get("/api/v1/rules").raise_for_status().json()["data"]["groups"]
        return {rule["name"]: (rule["health"], rule["state"]) for group in groups for rule in group["rules"]}

    def wait_until(self, is_so: Callable[[Self], bool]) -> None:
        """Asks until it is so."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text()
            try:
                if is_so(self):
                    return
            except (
                httpx.TransportError,
                httpx.HTTPStatusError,
            ):  # it does not listen yet, or has just begun to
                pass
            time.sleep(STEP_S)
        raise AssertionError(f"Prometheus did not see it; its log:\n{self._log.read_text()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
        self._process.kill()
        self._process.wait(START_S)
        self._folder.cleanup()


def _found(series: dict[str, object]) -> Found:
    labels, value = series["metric"], series["value"]
    assert isinstance(labels, dict)
    assert isinstance(value, list)
    return Found({name: text for name, text in labels.items() if name != "__name__"}, float(value[1]))
