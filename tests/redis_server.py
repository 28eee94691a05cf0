"""A real Redis: `redis-server` as a process of its own, on a free port of loopback."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
import trustme

from tests.closing import Closing

START_S = 30.0
"""Generous: it is up in 35 ms where nothing else runs."""
ATTEMPTS = 5
"""Somebody else may take the port between finding it free and starting."""


def require_redis() -> None:
    """Skips the test, and says what to install, where there is no Redis."""
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server: install it (Debian's package is redis-server)")


class RedisServer(Closing):
    """A Redis with a password that writes each change to disk before it answers.

    Args:
        tls: Serves TLS, with a certificate of an authority of its own (`ca_file`).
        appendonly: Whether it writes changes to disk at all.
    """

    def __init__(self, *, tls: bool = False, appendonly: bool = True) -> None:
        self.password = secrets.token_hex(8)
        self.port = 0
        self._folder = tempfile.TemporaryDirectory(prefix="rc-redis-")
        self._tls = tls
        self._appendonly = appendonly
        self._process: subprocess.Popen[bytes] | None = None
        self.ca_file: Path | None = None
        if tls:
            self._make_certificates()
        for attempt in range(ATTEMPTS):
            self.port = _free_port()
            try:
                self.start_again()
                break
            except RuntimeError:
                if attempt == ATTEMPTS - 1:
                    self._folder.cleanup()
                    raise

    @property
    def url(self) -> str:
        """With the password."""
        return f"{'rediss' if self._tls else 'redis'}://:{self.password}@127.0.0.1:{self.port}/0"

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def start_again(self) -> None:
        """Starts it on the same port and data after `stop` or `kill`; returns when it answers."""
        with Path(self._folder.name, "log").open("ab") as log:
            process = subprocess.Popen(
                ["redis-server", "-"], stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self._folder.name
            )
        self._process = process
        assert process.stdin is not None
        process.stdin.write("\n".join(self._options()).encode())
        process.stdin.close()
        deadline = time.monotonic() + START_S
        while not (self._tls and self._listens()) and self.command("PING") != "+PONG":
            if process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(
                    f"redis-server did not start: {Path(self._folder.name, 'log').read_text()}"
                )
            time.sleep(0.01)

    def stop(self) -> None:
        """Ends it in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it as a crash would."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Lets it take connections and commands, and answer none."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Ends `freeze`: what arrived meanwhile is done now."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def command(self, *words: str) -> str:
        """The first line of its reply to a command, past any client; "" if there is none. Not over TLS."""
        lines = [f"AUTH {self.password}", " ".join(words), ""]
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), START_S) as stream,
        ):
            stream.sendall("\r\n".join(lines).encode())
            with stream.makefile("r", newline="\r\n") as replies:
                authenticated, reply = replies.readline(), replies.readline()
                return reply.strip() if authenticated.strip() == "+OK" else authenticated.strip()
        return ""

    def close(self) -> None:
        """Ends it if it runs, and removes its data."""
        self.kill()
        self._folder.cleanup()

    def _options(self) -> list[str]:
        options = [
            "bind 127.0.0.1",
            f"port {0 if self._tls else self.port}",
            f"requirepass {self.password}",
            f"appendonly {'yes' if self._appendonly else 'no'}",
            "appendfsync always",
            'save ""',
            "daemonize no",
            "databases 16",
        ]
        if self._tls:
            options += [
                f"tls-port {self.port}",
                "tls-cert-file server.pem",
                "tls-key-file server.key",
                "tls-ca-cert-file ca.pem",
                "tls-auth-clients no",
            ]
        return options

    def _make_certificates(self) -> None:
        folder = Path(self._folder.name)
        self.ca_file = folder / "ca.pem"
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(str(self.ca_file))
        certificate.private_key_pem.write_to_path(str(folder / "server.key"))
        certificate.cert_chain_pems[0].write_to_path(str(folder / "server.pem"))

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
            return True
        return False

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            if self.is_alive:
                self._process.send_signal(how)
            self._process.wait(START_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
