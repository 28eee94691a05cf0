"""The documents keep their word: examples run, commands exist, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
DECISIONS = sorted(ROOT.glob("docs/adr/[0-9]*.md"))


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def _commands() -> list[list[str]]:
    lines = [line for block in _blocks("console") for line in block.splitlines()]
    return [shlex.split(line[2:], comments=True) for line in lines if line.startswith("$ ")]


def test_python_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    """A Python block of the README, run after those before it, raises, or prints not what it says."""
    blocks = _blocks("python")
    assert blocks, "README.md has no ```python block"
    names: dict[str, object] = {"__name__": "readme"}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"README.md, python block {number}", "exec"), names)
    said = re.findall(r"^ *print\(.*\)  # (.+)$", "".join(blocks), re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == said


def test_commands_exist() -> None:
    """The README tells the user to type a make target or a recollect command that does not exist."""
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = _commands()
    assert {command[1] for command in commands if command[0] == "make" and len(command) > 1} <= targets
    recollect = Path(sys.executable).with_name("recollect")
    for name in sorted({command[1] for command in commands if command[0].endswith("recollect")}):
        shown = subprocess.run([recollect, name, "--help"], capture_output=True, text=True, check=False)
        assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """A page links to a file of the repository that is not there."""
    targets = re.findall(r"\]\((?!\w+://|#)([^)#\s]+)[^)]*\)", page.read_text())
    assert not [target for target in targets if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "ARCHITECTURE.md"], ids=lambda page: page.name)
def test_named_files_exist(page: Path) -> None:
    """A page names a file of the source tree (`service/...py`) that has moved or gone."""
    named = re.findall(r"`((?:client|service|model|proto|tests|docs)/[\w/.-]+\.\w+)`", page.read_text())
    assert not [name for name in named if not (ROOT / name).exists()]


def test_decisions_are_numbered_and_whole() -> None:
    """A decision record is missing in the sequence, or lacks context, decision or consequences."""
    assert [int(page.name[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    for page in DECISIONS:
        headings = re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences"], page.name
