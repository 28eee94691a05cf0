"""A process in a sandbox, and what an engine does to one: wait until it is healthy, look into it, stop it."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.deploy.sandbox import Network, Setup

START_S = 90.0
"""Generous: FAISS and its libraries are loaded from a cold disk on a busy machine."""
STEP_S = 0.1


def run_to_end(
    setup: Setup, command: Sequence[str], *, network: Network | None = None, timeout_s: float = START_S
) -> subprocess.CompletedProcess[str]:
    """Runs a command that is to end by itself. Without a network of its own it has this machine's."""
    return subprocess.run(
        setup.from_outside(command, network), capture_output=True, text=True, timeout=timeout_s, check=False
    )


class Container:
    """A command that goes on, as process 1 of its sandbox.

    Args:
        setup: How it runs.
        command: What runs.
        network: Shared with others, or None for this machine's.
    """

    def __init__(self, setup: Setup, command: Sequence[str], *, network: Network | None) -> None:
        self.setup = setup
        self._folder = tempfile.TemporaryDirectory(prefix="rc-container-")
        self._output = Path(self._folder.name, "output")
        with self._output.open("w") as output:
            self._process = subprocess.Popen(
                setup.from_outside(command, network),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        """What it wrote so far, to either stream."""
        return self._output.read_text()

    @property
    def pid(self) -> int:
        """Of its process 1, as this machine counts."""
        return psutil.Process(self._process.pid).children()[0].pid

    def execute(
        self, command: Sequence[str], *, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a further command inside, as the same user."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--net", "--root"]
        return subprocess.run(
            [*enter, "--", *self.setup.inside(command)],
            input=stdin or "",
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
        )

    def wait_healthy(self, command: Sequence[str]) -> None:
        """Runs a health check until it succeeds."""
        deadline = time.monotonic() + START_S
        said = ""
        while time.monotonic() < deadline:
            assert self._process.poll() is None, f"it ended: {self.output}"
            if psutil.Process(self._process.pid).children():
                checked = self.execute(command)
                if checked.returncode == 0:
                    return
                said = checked.stdout + checked.stderr
            time.sleep(STEP_S)
        raise AssertionError(f"it did not get healthy: {said}\n{self.output}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Sends a signal, as `docker stop` does; returns the exit status."""
        os.kill(self.pid, how)
        return self._process.wait(START_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            # The end of process 1 is that of its namespace, and then of unshare, which waits for it. Where
            # there is none yet, --kill-child sees to it that there will be none.
            unshare = psutil.Process(self._process.pid)
            for process in unshare.children() or [unshare]:
                process.kill()
        self._process.wait(START_S)
        self._folder.cleanup()
