"""`recollect` as an operator runs it: a process for each command."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import cast

from tests.server_process import OPERATOR_TOKEN, SCRIPT, ServerProcess

PATIENCE_S = 60.0

Json = dict[str, object]


def wait_for(condition: Callable[[], bool], what: str) -> float:
    """Waits for something that must happen, however slow the machine; returns for how long, in seconds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE_S, f"did not happen: {what}"
        time.sleep(0.02)
    return time.monotonic() - began


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of the tests without a developer's own settings, and with these."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RECOLLECT_")}
    return {**inherited, "COLUMNS": "200", **extra}


class Shell:
    """Commands that speak to one server.

    Args:
        server: With an admin API.
        key: To show.
        options: That every command gets.
    """

    def __init__(self, server: ServerProcess, key: str = OPERATOR_TOKEN, *, options: tuple[str, ...] = ()):
        self._variables = {"RECOLLECT_ADMIN_URL": server.admin_url, "RECOLLECT_OPERATOR_KEY": key}
        self._options = options

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Runs one command to its end."""
        return subprocess.run(
            [str(SCRIPT), *words, *self._options],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            env=environment(self._variables),
        )

    def done(self, *words: str) -> str:
        """What a command that has to succeed printed."""
        ended = self.run(*words)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    def refused(self, *words: str) -> str:
        """The one line that says why a command failed."""
        ended = self.run(*words)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert len(ended.stderr.splitlines()) == 1, ended.stderr
        return ended.stderr

    def one(self, *words: str) -> Json:
        """An object that a command printed as JSON."""
        return cast("Json", json.loads(self.done(*words, "--json")))

    def many(self, *words: str) -> list[Json]:
        """A list that a command printed as JSON."""
        return cast("list[Json]", json.loads(self.done(*words, "--json")))

    def new_key(self, tenant: str, *scopes: str, lifetime_days: float | None = None) -> str:
        """The token of a new key; all that the command prints to standard output."""
        words = [word for scope in scopes for word in ("--scope", scope)]
        if lifetime_days is not None:
            words += ["--lifetime-days", f"{lifetime_days:f}"]
        return self.done("keys", "issue", tenant, *words).strip()


def key_id_of(token: str) -> str:
    """The public part of a token."""
    return token.split("_")[1]
