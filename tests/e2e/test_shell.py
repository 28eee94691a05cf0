"""The command `recollect` as a shell runs it: help, completion, and how it fails."""

from __future__ import annotations

import subprocess

import pytest

from tests.e2e.shell import PATIENCE_S, environment
from tests.server_process import SCRIPT, run_to_end

pytestmark = pytest.mark.e2e

COMMANDS = {"audit", "configuration", "demo", "drain", "keys", "namespaces", "serve", "tenants"}


def in_bash(script: str) -> str:
    """What a script prints in a bash that finds `recollect`."""
    path = {"PATH": f"{SCRIPT.parent}:{environment({})['PATH']}"}
    ended = subprocess.run(
        ["bash", "-c", script],
        env=environment(path),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def completed(*words: str) -> list[str]:
    """What bash offers behind a line of these words, of which the last may be begun only."""
    line = " ".join(f"'{word}'" for word in ("recollect", *words))
    script = f"""
        eval "$(recollect --show-completion)"
        COMP_WORDS=({line}); COMP_CWORD={len(words)}
        function_of=$(complete -p recollect | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        "$function_of" recollect
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return in_bash(script).split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ten"], ["tenants"]),
        (["tenants", "cr"], ["create"]),
        (["keys", "r"], ["revoke", "rotate"]),
        (["tenants", "create", "x", "--quota", "bytes_"], ["bytes_in_flight_max=", "bytes_max="]),
        (["keys", "issue", "x", "--scope", "a"], ["admin"]),
        (["audit", "--lim"], ["--limit"]),
    ],
)
def test_bash_completes(words: list[str], offered: list[str]) -> None:
    """TAB offers nothing, or what cannot stand there, in a bash that was set up as --help says."""
    assert sorted(completed(*words)) == offered


def test_bash_offers_all_commands() -> None:
    """TAB behind `recollect` hides a command that is installed."""
    assert set(completed("")) >= COMMANDS


@pytest.mark.parametrize("group", ["", "tenants", "keys", "namespaces"])
def test_help_lists_what_there_is(group: str) -> None:
    """Nobody finds out which commands there are."""
    shown = run_to_end([group, "--help"] if group else ["--help"])
    assert shown.returncode == 0, shown.stderr
    wanted = {"list"} if group else COMMANDS
    assert all(f" {each} " in shown.stdout for each in wanted)


def test_without_a_server_it_says_so_in_one_line() -> None:
    """An operator whose server is away is shown a traceback."""
    ended = run_to_end(["tenants", "list", "--url", "http://127.0.0.1:1"])
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("recollect: http://127.0.0.1:1 does not answer")
    assert len(ended.stderr.splitlines()) == 1
