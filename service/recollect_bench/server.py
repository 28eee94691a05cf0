"""A real memory server for a workload: another process, with the settings that it has by default."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STOP_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Server:
    """One that runs: where it listens, and its process."""

    unix_url: str
    tcp_url: str
    pid: int


@contextmanager
def memory_server() -> Iterator[Server]:
    """Starts `recollect serve --dev` on a unix socket and a TCP port, and stops it at the end.

    Raises:
        RuntimeError: It did not start; it says why on standard error.
    """
    with tempfile.TemporaryDirectory(prefix="recollect-") as folder:
        socket = f"unix://{Path(folder) / 's'}"
        command = [sys.executable, "-m", "recollect", "serve", "--dev"]
        command += ["--listen", socket, "--listen", "127.0.0.1:0"]
        # The benchmark's own settings must not change what is measured, save that nothing is logged.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RECOLLECT_")}
        quiet = {"RECOLLECT_TELEMETRY__LOG_LEVEL": "error"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**kept, **quiet}) as process:
            try:
                assert process.stdout is not None
                ready = process.stdout.readline()
                if not ready.startswith("recollect ready on "):
                    raise RuntimeError(f"the memory server did not start (exit status {process.wait()})")
                urls = ready.removeprefix("recollect ready on ").split()
                yield Server(unix_url=urls[0], tcp_url=urls[1].rstrip(","), pid=process.pid)
            finally:
                _stop(process)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
