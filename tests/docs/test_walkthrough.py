"""README, "Several customers": what a reader types and runs there works, with a real server, in its order."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import blocks, page, section, typed

pytestmark = pytest.mark.e2e

TEXT = section(page("README.md"), "Several customers")
RPC, ADMIN = "127.0.0.1:50051", "127.0.0.1:8080"
"""Where a server listens if nothing is said. The test takes other ports: these may be somebody's."""
START_S = 60.0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment(rpc: str, admin: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RECOLLECT_")}
    scripts = Path(sys.executable).parent
    return {
        **inherited,
        "PATH": f"{scripts}{os.pathsep}{inherited.get('PATH', '')}",
        "OMP_NUM_THREADS": "1",
        "RECOLLECT_DEVICE": "cpu",
        "RECOLLECT_LISTEN": f'["{rpc}"]',
        "RECOLLECT_ADMIN__LISTEN": f'["{admin}"]',
        "RECOLLECT_ADMIN_URL": f"http://{admin}",
    }


class Reader:
    """Somebody who types what the section says into one folder."""

    def __init__(self, folder: Path) -> None:
        self.rpc, self.admin = f"127.0.0.1:{_free_port()}", f"127.0.0.1:{_free_port()}"
        self.folder = folder
        self.environment = _environment(self.rpc, self.admin)

    def serve(self, command: str) -> subprocess.Popen[str]:
        """Starts the server, and waits for its line."""
        with (self.folder / "log").open("w") as log:
            server = subprocess.Popen(
                shlex.split(command),
                cwd=self.folder,
                env=self.environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert server.stdout is not None
        watchdog = threading.Timer(START_S, server.kill)
        watchdog.start()
        line = server.stdout.readline()
        watchdog.cancel()
        assert line.startswith("recollect ready on "), (self.folder / "log").read_text()
        return server

    def type(self, *lines: str) -> str:
        """Types lines into one shell; what came out. All must succeed."""
        return self._run(["bash", "-euo", "pipefail", "-c", "\n".join(lines)])

    def run_python(self, code: str) -> str:
        """Runs a program of the section in a process of its own."""
        assert RPC in code
        return self._run([sys.executable, "-c", code.replace(RPC, self.rpc)])

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """With a server as the first block starts it, which ends in order at the end."""
    made = Reader(tmp_path)
    (start,) = typed(blocks(TEXT, "console")[0])
    server = made.serve(start)
    try:
        yield made
        server.send_signal(signal.SIGTERM)
        assert server.wait(START_S) == 0
    finally:
        server.kill()
        server.wait(START_S)
        if server.stdout is not None:
            server.stdout.close()


def test_making_a_tenant_and_connecting_with_its_key(reader: Reader) -> None:
    """The first steps with several customers do not work as the README has them."""
    _, making, looking = (typed(block) for block in blocks(TEXT, "console"))
    shown = reader.type(*making)
    assert "training" in shown
    assert (reader.folder / "acme.key").read_text().startswith("rk_")
    (code,) = blocks(TEXT, "python")
    said = re.findall(r"^print\(.*\)  # (.+)$", code, re.MULTILINE)
    assert reader.run_python(code).splitlines() == said
    export = next(line for line in making if line.startswith("export "))
    shown = reader.type(export, *looking)
    assert "run-7" in shown
    assert "namespace.create" in shown
