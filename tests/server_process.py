"""A real server: `recollect serve` as a process of its own, with real sockets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.closing import Closing

START_S = 60.0
"""Generous: FAISS and its libraries are loaded from a cold disk on a busy machine."""
OPTIONS = ("--device", "cpu", "--threads", "1")
OPERATOR_TOKEN = f"rk_{'0' * 16}_{'5' * 64}"
"""Of the operator that servers with keys know from the start."""
SCRIPT = Path(sys.executable).with_name("recollect")


def run_to_end(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs `recollect` with these arguments, for commands that are to end by themselves."""
    return subprocess.run(
        [str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
        env=_environment({}),
    )


class ServerProcess(Closing):
    """A server on a unix socket and on a port of loopback.

    Args:
        limits: Overrides, as in `{"top_k_max": 4}`.
        socket: Path of the unix socket; None: a new one.
        port: TCP port; 0: any that is free.
        data_dir: Where it keeps tenants and keys, with `OPERATOR_TOKEN` for an operator and an admin API.
        environment: Further settings. With a registry's URL the server has keys too.
        tcp_host: To listen on.
        stdin: A descriptor: whether it is a terminal makes a difference.
    """

    def __init__(
        self,
        *,
        limits: Mapping[str, int] | None = None,
        socket: Path | None = None,
        port: int = 0,
        data_dir: Path | None = None,
        environment: Mapping[str, str] | None = None,
        tcp_host: str = "127.0.0.1",
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rc-")
        self.socket = socket or Path(self._folder.name, "s.sock")
        extra = {f"RECOLLECT_LIMITS__{name.upper()}": str(value) for name, value in (limits or {}).items()}
        extra.update(environment or {})
        options = [*OPTIONS, "--listen", f"unix://{self.socket}", "--listen", f"{tcp_host}:{port}"]
        if data_dir is not None or "RECOLLECT_REGISTRY__URL" in extra:
            extra.setdefault("RECOLLECT_ADMIN__OPERATOR_KEY", OPERATOR_TOKEN)
            options += ["--admin-listen", "127.0.0.1:0"]
            options += ["--data-dir", str(data_dir)] if data_dir is not None else []
        else:
            options.append("--dev")
        self._log = Path(self._folder.name, "log")
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [str(SCRIPT), "serve", *options],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=_environment(extra),
            )
        self.ready_line = self._first_line()
        rpc, _, self.admin_url = self.ready_line.removeprefix("recollect ready on ").partition(", admin on ")
        self.unix_url, self.tcp_url = rpc.split()

    @property
    def port(self) -> int:
        """Of the TCP address."""
        return int(self.tcp_url.rpartition(":")[2])

    @property
    def log(self) -> str:
        """What the process wrote to standard error so far."""
        return self._log.read_text()

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    @property
    def resident_bytes(self) -> int:
        """Of the machine's memory that the process takes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) * 1024

    def terminate(self) -> None:
        """Asks it to drain; returns at once."""
        self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it as a crash would."""
        self.process.kill()
        self.process.wait(START_S)

    def wait(self) -> int:
        """The exit status."""
        return self.process.wait(START_S)

    def close(self) -> None:
        """Ends it if it runs, and removes its folder."""
        if self.is_alive:
            self.process.kill()
        self.process.wait(START_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._folder.cleanup()

    def _first_line(self) -> str:
        lines: list[str] = []
        stdout = self.process.stdout
        assert stdout is not None
        reader = threading.Thread(target=lambda: lines.append(stdout.readline()), daemon=True)
        reader.start()
        reader.join(START_S)
        if not lines or not lines[0].startswith("recollect ready on "):
            said = self._log.read_text()
            self.close()
            raise AssertionError(f"the server did not get ready; it said: {lines} {said}")
        return lines[0].strip()


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    # A developer's own RECOLLECT_ settings must not change what is tested.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RECOLLECT_")}
    return {**inherited, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **extra}
