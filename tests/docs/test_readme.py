"""The documents keep their word: examples run, commands exist, links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer
import typer.core

from tests.docs.pages import PAGES, ROOT, anchor, blocks, commands, headings, page, section

README = page("README.md")
SEVERAL_CUSTOMERS = section(README, "Several customers")
"""Needs a server; tests/docs/test_walkthrough.py follows it."""
DECISIONS = sorted(ROOT.glob("docs/adr/[0-9]*.md"))

with_commands = pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "docs/operations.md", "docs/security.md"]
)
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def test_python_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    """A Python block of the README, run after those before it, raises, or prints not what it says."""
    found = blocks(README.replace(SEVERAL_CUSTOMERS, ""), "python")
    assert found, "README.md has no ```python block"
    names: dict[str, object] = {"__name__": "readme"}
    for number, block in enumerate(found, 1):
        exec(compile(block, f"README.md, python block {number}", "exec"), names)
    said = re.findall(r"^ *print\(.*\)  # (.+)$", "".join(found), re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == said


@with_commands
def test_make_targets_exist(name: str) -> None:
    """A page tells the user to type a make target that does not exist."""
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page(name)
    named = {words[1] for words in commands(text) if words[0] == "make" and len(words) > 1}
    assert named | set(re.findall(r"`make ([a-z-]+)", text)) <= targets


def _command_line() -> typer.core.TyperGroup:
    app = typer.Typer()
    app.callback()(lambda: None)
    for entry in entry_points(group="recollect.commands"):
        loaded = entry.load()
        if isinstance(loaded, typer.Typer):
            app.add_typer(loaded, name=entry.name)
        else:
            app.command(entry.name)(loaded)
    made = typer.main.get_command(app)
    assert isinstance(made, typer.core.TyperGroup)
    return made


def _resolved(words: list[str]) -> tuple[typer.core.TyperCommand, list[str]]:
    """The command that the words name, and what follows it."""
    group, rest = _command_line(), list(words)
    while rest:
        command = group.commands.get(rest.pop(0))
        if isinstance(command, typer.core.TyperCommand):
            return command, rest
        if not isinstance(command, typer.core.TyperGroup):
            break
        group = command
    pytest.fail(f"there is no `recollect {' '.join(words)}`")


def _recollect(text: str) -> Iterator[list[str]]:
    for words in commands(text):
        if words[0].endswith("recollect"):
            end = next((i for i, word in enumerate(words) if word in (">", "|", "&")), len(words))
            yield words[1:end]


@with_commands
def test_recollect_commands_exist(name: str) -> None:
    """A page tells the user to type a `recollect` command, argument or option that does not exist."""
    for words in _recollect(page(name)):
        command, rest = _resolved(words)
        said = f"`recollect {' '.join(words)}`"
        try:
            values, _, _ = command.make_parser(typer.Context(command)).parse_args(rest)
        except Exception as error:  # typer brings a click of its own, with errors of its own
            pytest.fail(f"{said}: {error}")
        missing = [each.name for each in command.params if each.required and not values.get(each.name or "")]
        assert not missing, f"{said} lacks {missing}"


def test_the_command_lists_what_is_installed() -> None:
    """The installed script does not know the commands that the pages name."""
    script = Path(sys.executable).with_name("recollect")
    shown = subprocess.run([script, "--help"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    named = {words[0] for each in ("README.md", "docs/operations.md") for words in _recollect(page(each))}
    assert not [name for name in named if not re.search(rf"\b{name}\b", shown.stdout)]


@each_page
def test_links_lead_somewhere(path: Path) -> None:
    """A page links to a file of the repository that is not there, or to a heading that is not in it."""
    text = path.read_text()
    for target in re.findall(r"\]\((?!\w+://)([^)\s]+)[^)]*\)", text):
        file, _, wanted = target.partition("#")
        other = path.parent / file if file else path
        assert other.exists(), target
        if wanted:
            assert wanted in map(anchor, headings(other.read_text())), target


@pytest.mark.parametrize(
    "name", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/operations.md", "docs/security.md"]
)
def test_named_files_exist(name: str) -> None:
    """A page names a file of the source tree (`service/...py`) that has moved or gone."""
    pattern = r"`((?:client|service|model|proto|tests|docs|deploy)/[\w/.-]+[\w/])`"
    assert not [named for named in re.findall(pattern, page(name)) if not (ROOT / named).exists()]


def test_decisions_are_numbered_and_whole() -> None:
    """A decision record is missing in the sequence, or lacks context, decision or consequences."""
    assert [int(path.name[:4]) for path in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    for path in DECISIONS:
        text = path.read_text()
        assert text.startswith(f"# {int(path.name[:4])}. "), path.name
        assert headings(text)[1:] == ["Context", "Decision", "Consequences"], path.name
