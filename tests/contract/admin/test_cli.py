"""`recollect tenants`, `keys`, `namespaces`, `audit` and `drain` against a real uvicorn."""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
import trustme
import typer
from typer.testing import CliRunner, Result

from recollect_server.admin.cli import keys, namespaces, server, tenants
from tests.admin_world import World, served, world


def command_line() -> typer.Typer:
    """All commands, as `recollect` has them."""
    app = typer.Typer()
    for name, part in (("tenants", tenants.app), ("keys", keys.app), ("namespaces", namespaces.app)):
        app.add_typer(part, name=name)
    app.command("audit")(server.audit)
    app.command("drain")(server.drain)
    return app


class Shell:
    """Runs commands as an operator who set the environment up.

    Args:
        made: Whose keys there are.
        url: Of the admin API.
    """

    def __init__(self, made: World, url: str) -> None:
        self.world = made
        self.url = url
        self._runner = CliRunner()

    async def run(self, *words: str, holder: str = "operator", **variables: str) -> Result:
        """Runs one command; its environment is what is given here."""
        environment = {
            "RECOLLECT_ADMIN_URL": self.url,
            "RECOLLECT_OPERATOR_KEY": self.world.tokens.get(holder, ""),
            "COLUMNS": "200",
            **variables,
        }
        # In a thread of its own: the server answers in this one.
        return await asyncio.to_thread(self._runner.invoke, command_line(), words, env=environment)

    async def done(self, *words: str) -> str:
        """Runs a command that has to succeed; what it printed."""
        result = await self.run(*words)
        assert result.exit_code == 0, result.output
        return result.stdout


@pytest.fixture
async def shell() -> AsyncIterator[Shell]:
    """A shell beside a server."""
    async with world() as made, served(made.app) as url:
        yield Shell(made, url)


async def test_tenants(shell: Shell) -> None:
    """An operator cannot manage tenants from the shell."""
    await shell.done("tenants", "create", "initech", "--quota", "bytes_max=2GiB", "--quota", "weight=3")
    found = json.loads(await shell.done("tenants", "get", "initech", "--json"))
    assert (found["quotas"]["bytes_max"], found["quotas"]["weight"]) == (2 * 2**30, 3)
    changed = json.loads(await shell.done("tenants", "quotas", "initech", "--quota", "weight=4", "--json"))
    assert (changed["bytes_max"], changed["weight"]) == (2 * 2**30, 4)
    await shell.done("tenants", "disable", "initech")
    heading, *rows = (await shell.done("tenants", "list")).splitlines()
    assert heading.split() == [
        "NAME",
        "DISABLED",
        "REVISION",
        "CREATED",
        "BYTES",
        "MAX",
        "ENTRIES",
        "MAX",
        "WEIGHT",
    ]
    assert [row.split()[:2] for row in rows] == [["acme", "no"], ["initech", "yes"], ["umbrella", "no"]]
    assert len({row.index(row.split()[1]) for row in rows}) == 1
    await shell.done("tenants", "enable", "initech")
    await shell.done("tenants", "delete", "initech", "--yes")
    assert len(json.loads(await shell.done("tenants", "list", "--json"))) == 2


async def test_a_tenant_is_not_deleted_by_mistake(shell: Shell) -> None:
    """A typing error deletes what a customer stored."""
    assert (await shell.run("tenants", "delete", "acme")).exit_code == 1
    assert "acme" in await shell.done("tenants", "list")


async def test_keys(shell: Shell) -> None:
    """An operator cannot manage keys from the shell, or a script gets more than the token."""
    issued = await shell.run("keys", "issue", "acme", "--scope", "read", "--scope", "admin", "--label", "ci")
    token = issued.stdout.strip()
    assert token.startswith("rk_")
    assert "shown this once" in issued.stderr
    shell.world.tokens["new"] = token
    listed = await shell.run("keys", "list", "acme", "--json", holder="new")
    (key,) = [each for each in json.loads(listed.stdout) if each["label"] == "ci"]
    rotated = json.loads(
        await shell.done("keys", "rotate", "acme", "--key-id", key["key_id"], "--overlap-s", "0", "--json")
    )
    assert (await shell.run("keys", "list", "acme", holder="new")).exit_code == 1
    await shell.done("keys", "revoke", "acme", "--key-id", rotated["key"]["key_id"])
    table = await shell.done("keys", "list", "acme")
    assert "revoked" in table
    assert token.split("_")[2] not in table
    operator = await shell.done("keys", "issue", "--operator", "--lifetime-days", "0.5")
    shell.world.tokens["new"] = operator.strip()
    assert (await shell.run("keys", "list", "--operator", holder="new")).exit_code == 0


async def test_namespaces(shell: Shell) -> None:
    """An operator cannot manage namespaces from the shell."""
    await shell.world.add_namespace("acme", "team/run:7")
    headings, row = (await shell.done("namespaces", "list", "acme")).splitlines()
    shown = dict(zip(re.split(" {2,}", headings), re.split(" {2,}", row), strict=True))
    assert (shown["NAME"], shown["INDEX"], shown["RECALL"]) == ("team/run:7", "auto", "0.95")
    assert "float16" in await shell.done("namespaces", "get", "acme", "team/run:7")
    stats = json.loads(await shell.done("namespaces", "stats", "acme", "team/run:7", "--json"))
    assert stats == {"streams": 2, "entries": 3, "bytes": 4}
    evicted = await shell.done("namespaces", "evict", "acme", "team/run:7", "--oldest", "5", "--layer", "8")
    assert evicted.split() == ["EVICTED", "5"]
    await shell.done("namespaces", "delete", "acme", "team/run:7", "--yes")
    assert json.loads(await shell.done("namespaces", "list", "acme", "--json")) == []


async def test_audit_and_drain(shell: Shell) -> None:
    """An operator cannot read the audit log or drain a server from the shell."""
    await shell.done("drain")
    assert len(shell.world.drained) == 1
    assert len(json.loads(await shell.done("audit", "--json", "--limit", "2"))) == 2
    assert "tenant.create" in await shell.done("audit", "--tenant", "acme")


@pytest.mark.parametrize(
    ("words", "holder", "status", "message"),
    [
        (["tenants", "get", "nobody"], "operator", 1, "there is no tenant 'nobody' (TENANT_NOT_FOUND)"),
        (["tenants", "list"], "", 1, "(UNAUTHENTICATED)"),
        (["tenants", "list"], "admin", 1, "(PERMISSION_DENIED)"),
        (["tenants", "create", "UPPER"], "operator", 1, "(INVALID_ARGUMENT)"),
        (["tenants", "create", "x", "--quota", "weights=2"], "operator", 2, "weights=2"),
        (["keys", "list"], "operator", 2, "say whose keys"),
        (["keys", "list", "acme", "--operator"], "operator", 2, "say whose keys"),
        (["keys", "issue", "acme"], "operator", 2, "--scope"),
        (["namespaces", "evict", "acme", "x"], "operator", 2, "give one of"),
        (["tenants", "list", "--url", "http://127.0.0.1:1"], "operator", 1, "does not answer"),
        (["tenants", "list", "--url", "http://memory.example"], "operator", 2, "readable"),
        (["tenants", "list", "--url", "ftp://memory.example"], "operator", 2, "http://host:port"),
        (["tenants", "list", "--url", "http://u:p@localhost"], "operator", 2, "without a user"),
        (["tenants", "list", "--key-file", "absent"], "operator", 2, "--key-file"),
        (["tenants", "list", "--ca-file", "absent"], "operator", 2, "--ca-file"),
    ],
)
async def test_what_is_wrong_is_one_line(
    shell: Shell, words: list[str], holder: str, status: int, message: str
) -> None:
    """A user is shown a traceback, or a script cannot tell failure from misuse."""
    result = await shell.run(*words, holder=holder)
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
@pytest.mark.parametrize(
    "words",
    [
        ["keys", "issue", "--operator", "--lifetime-days"],
        ["namespaces", "evict", "acme", "run-7", "--older-than-s"],
    ],
)
async def test_what_is_no_amount_is_one_line(shell: Shell, words: list[str], value: str) -> None:
    """A number that cannot be sent ends in a traceback, and a script cannot tell misuse from a defect."""
    result = await shell.run(*words, value)
    assert result.exit_code == 2, result.output
    assert result.stderr == f"recollect: {words[-1]} is {value}; give a finite number from 0 on\n"


async def test_a_key_is_no_argument(shell: Shell, tmp_path: Path) -> None:
    """A key among the arguments is read by every user of the machine; a file's is not."""
    token = shell.world.tokens["operator"]
    refused = await shell.run("tenants", "list", "--key", token, holder="")
    assert refused.exit_code == 2
    assert token not in refused.output
    file = tmp_path / "key"
    file.write_text(f"{token}\n")
    taken = await shell.run("tenants", "list", "--key-file", str(file), holder="")
    assert taken.exit_code == 0


async def test_tls_in_both_directions(tmp_path: Path) -> None:
    """An operator's key goes to a server that somebody else runs, or mutual TLS keeps the operator out."""
    ours, theirs = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(str(tmp_path / "ca"))
    theirs.cert_pem.write_to_path(str(tmp_path / "other"))
    for name in ("127.0.0.1", "operator"):
        ours.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(str(tmp_path / name))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tmp_path / "ca")
    context.load_cert_chain(tmp_path / "127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    async with world() as made, served(made.app, tls=context) as url:
        shell = Shell(made, url)
        shown = ("--cert-file", str(tmp_path / "operator"))
        known = ("--ca-file", str(tmp_path / "ca"))
        assert (await shell.run("tenants", "list", *known, *shown)).exit_code == 0
        for words in (known, shown, (*shown, "--ca-file", str(tmp_path / "other"))):
            refused = await shell.run("tenants", "list", *words)
            assert (refused.exit_code, refused.stdout) == (1, "")
            assert len(refused.stderr.splitlines()) == 1


def completed(line: str) -> list[str]:
    """What a shell offers behind a line."""
    words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    asked = {**os.environ, **words, "_RECOLLECT_COMPLETE": "complete_bash"}
    script = Path(sys.executable).with_name("recollect")
    return subprocess.run([script], env=asked, capture_output=True, text=True, check=True).stdout.split()


def test_the_shell_completes_commands() -> None:
    """TAB does nothing behind `recollect`, or does not know a command that is installed."""
    installed = {entry.name: entry.load() for entry in entry_points(group="recollect.commands")}
    assert set(completed("recollect ")) == set(installed)
    for name, loaded in installed.items():
        if isinstance(loaded, typer.Typer):
            assert set(completed(f"recollect {name} ")) == {each.name for each in loaded.registered_commands}


async def test_help_shows_no_key(shell: Shell) -> None:
    """A key in the environment is printed by --help."""
    shown = await shell.run("tenants", "list", "--help")
    assert shell.world.tokens["operator"] not in shown.output
    assert "RECOLLECT_ADMIN_URL" in click.unstyle(shown.output)


async def test_a_label_cannot_move_the_cursor(shell: Shell) -> None:
    """A tenant's name for a key changes what an operator sees on the screen."""
    assert (await shell.run("keys", "issue", "acme", "--scope", "read", "--label", "\x1b[2J")).exit_code == 1
    assert "\x1b" not in await shell.done("keys", "list", "acme")
