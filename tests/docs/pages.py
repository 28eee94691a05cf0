"""What the pages say, taken apart: sections, tables, code blocks, commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])

Row = list[str]


def page(name: str) -> str:
    """The text of a page, as "docs/operations.md"."""
    return (ROOT / name).read_text()


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one of its rank or above; headings within stay."""
    begins = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert begins is not None, f"there is no heading {heading!r}"
    rest = text[begins.end() :]
    ends = re.search(rf"^#{{1,{len(begins[1])}}} ", rest, re.MULTILINE)
    return rest[: ends.start()] if ends else rest


def headings(text: str) -> list[str]:
    """All headings, of any rank, but not comments in code blocks."""
    without_code = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^#+ (.+)$", without_code, re.MULTILINE)


def anchor(heading: str) -> str:
    """The anchor that a heading gets where Markdown is rendered."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def blocks(text: str, language: str) -> list[str]:
    """Code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def typed(block: str) -> list[str]:
    """The lines that a user types in a console block."""
    return [line[2:] for line in block.splitlines() if line.startswith("$ ")]


def commands(text: str) -> list[list[str]]:
    """All commands in console blocks, split as a shell splits them; variables before them left out."""
    lines = [line for block in blocks(text, "console") for line in typed(block)]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def rows(text: str, heading: Row) -> list[Row]:
    """The rows of all tables that have this heading, cell by cell."""
    found: list[Row] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" |")] if line.startswith("|") else []
        if not cells:
            inside = False
        elif [cell.lower() for cell in cells] == heading:
            inside = True
        elif inside and not set(line) <= set("|-"):
            found.append(cells)
    return found


def code(cell: str) -> list[str]:
    """What stands in backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)
