"""ARCHITECTURE.md and the decisions name what is there, where it is."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, page, section

ARCHITECTURE = page("ARCHITECTURE.md")
SERVER = ROOT / "service/recollect_server"
PLACED = re.compile(r"`([A-Z]\w+(?:\.\w+)?|[a-z_]\w+)`\s+\(`(service/recollect_server/[\w/]+)\.py`\)")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_named_is_where_the_page_says(path: Path) -> None:
    """A page sends its reader to a class or function that was renamed or has moved."""
    for name, file in PLACED.findall(path.read_text()):
        thing: object = importlib.import_module(file.removeprefix("service/").replace("/", "."))
        for part in name.split("."):
            assert hasattr(thing, part), f"{file}.py has no {name}"
            thing = getattr(thing, part)


def test_the_path_of_attend_is_whole() -> None:
    """The path to FAISS counts wrong, or names a step without its place."""
    text = section(ARCHITECTURE, "The path of `attend`")
    steps = re.findall(r"^\d+\. ", text, re.MULTILINE)
    assert len(steps) == len(re.findall(r"^\d+\. `[\w.]+` \(`service/[\w/.]+`\)", text, re.MULTILINE))
    assert "in seven functions" in text
    assert len(steps) == 7


def test_lines_that_protect_are_quoted_as_they_are() -> None:
    """The line that keeps tenants apart, or that orders them, is not what the page shows."""
    text = section(ARCHITECTURE, "Where B is protected from A")
    quoted = re.findall(r"\(`(service/[\w/.]+)`\):\n\n    (.+)$", text, re.MULTILINE)
    assert len(quoted) == 2
    for file, line in quoted:
        assert line in (ROOT / file).read_text(), line


def test_every_room_of_the_server_is_on_the_map() -> None:
    """A folder or module of the server is not on the map, or the map shows one that is gone."""
    text = section(ARCHITECTURE, "`service/recollect_server/`")
    cells = re.findall(r"^\| (`[^|]+?) \|", text, re.MULTILINE)
    said = {name.rstrip("/") for cell in cells for name in re.findall(r"`([a-z_]+(?:/|\.py))`", cell)}
    there = {
        path.name for path in SERVER.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert said == there - {"__init__.py"}


def test_classes_on_the_map_exist() -> None:
    """The map names a use case that was renamed."""
    text = section(ARCHITECTURE, "`service/recollect_server/`")
    sources = "\n".join(path.read_text() for path in SERVER.rglob("*.py"))
    named = set(re.findall(r"`([A-Z][A-Za-z]+|[a-z]+_[a-z_]+)`", text))
    assert not [name for name in named if not re.search(rf"^(?:class|def) {name}\b", sources, re.MULTILINE)]
