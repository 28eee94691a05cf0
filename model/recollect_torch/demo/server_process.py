"""A real memory server of the demo's own: another process, on a unix socket."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STOP_TIMEOUT_S = 15.0


@contextmanager
def memory_server() -> Iterator[str]:
    """Starts `recollect serve`, waits until it is ready, and stops it at the end.

    Trainer and server take turns, since a forward pass waits for what it asked: so each may use every
    core, as long as the one that waits does not spin (`OMP_WAIT_POLICY=passive`).

    Yields:
        The URL to connect to.

    Raises:
        RuntimeError: The server did not start; it says why on standard error.
    """
    with tempfile.TemporaryDirectory(prefix="recollect-") as folder:
        url = f"unix://{Path(folder) / 'memory.sock'}"
        command = [sys.executable, "-m", "recollect", "serve", "--dev", "--listen", url]
        quiet = {"RECOLLECT_TELEMETRY__LOG_LEVEL": "error", "RECOLLECT_TELEMETRY__LOG_FORMAT": "text"}
        environment = {**quiet, **os.environ, "OMP_WAIT_POLICY": "passive"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
            try:
                assert server.stdout is not None
                ready = server.stdout.readline()
                if not ready.startswith("recollect ready"):
                    raise RuntimeError(f"the memory server did not start (exit status {server.wait()})")
                yield url
            finally:
                _stop(server)


def _stop(server: subprocess.Popen[str]) -> None:
    server.terminate()
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        server.kill()
