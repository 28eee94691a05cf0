"""Reads the Dockerfile and .dockerignore, as far as this project uses them."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
IGNORE_FILE = ROOT / ".dockerignore"


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction, its lines joined.

    Attributes:
        name: In capitals, as "RUN".
        flags: What follows it with two dashes: {"from": "build-cpu"}.
        text: The rest.
    """

    name: str
    flags: dict[str, str]
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments: of a JSON list, or split as a shell splits them."""
        if self.text.startswith("["):
            listed: list[str] = json.loads(self.text)
            return listed
        return shlex.split(self.text)

    @property
    def command(self) -> list[str]:
        """What is executed: a JSON list as it is, anything else by a shell."""
        return self.words if self.text.startswith("[") else ["/bin/sh", "-c", self.text]


@dataclass(frozen=True, slots=True)
class Stage:
    """From one FROM to the next.

    Attributes:
        name: Behind AS.
        base: Of an image, or of a stage before.
        instructions: Without FROM.
    """

    name: str
    base: str
    instructions: list[Instruction] = field(default_factory=list)


def stages(path: Path = DOCKERFILE) -> dict[str, Stage]:
    """All stages by name, in their order."""
    found: dict[str, Stage] = {}
    for instruction in _instructions(path.read_text()):
        if instruction.name == "FROM":
            base, _, name = instruction.words
            found[name] = Stage(name, base)
        else:
            found[list(found)[-1]].instructions.append(instruction)
    return found


def lineage(name: str) -> list[Stage]:
    """A stage after those that it is made from, the first one first."""
    all_stages = stages()
    line: list[Stage] = []
    while name in all_stages:
        line.insert(0, all_stages[name])
        name = all_stages[name].base
    return line


def _instructions(text: str) -> Iterator[Instruction]:
    lines = (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    for joined in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, rest = joined.strip().partition(" ")
        flags: dict[str, str] = {}
        while match := re.match(r"--([a-z-]+)=(\S+)\s+", rest):
            flags[match[1]] = match[2]
            rest = rest[match.end() :]
        yield Instruction(name.upper(), flags, rest.strip())


def is_sent(name: str) -> bool:
    """Whether .dockerignore lets a file of the repository through: the last pattern that fits decides.

    A pattern stands for a path from the root, and for all below it; `**` for any number of folders.
    """
    sent = True
    for line in IGNORE_FILE.read_text().splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        lets_through = pattern.startswith("!")
        if _fits(pattern.lstrip("!").strip("/"), name):
            sent = lets_through
    return sent


def sent_files(source: str) -> list[str]:
    """The files below a path of this working tree that `docker build .` would send, from its root."""
    path = ROOT / source
    files = path.rglob("*") if path.is_dir() else [path]
    names = (str(file.relative_to(ROOT)) for file in files if file.is_file())
    return sorted(name for name in names if is_sent(name))


def _fits(pattern: str, name: str) -> bool:
    parts = name.split("/")
    return any(_matches(pattern.split("/"), parts[:depth]) for depth in range(1, len(parts) + 1))


def _matches(pattern: list[str], parts: list[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(pattern[1:], parts[skipped:]) for skipped in range(len(parts) + 1))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(pattern[1:], parts[1:])
