"""The oldest of what `pyproject.toml` lets users have, as constraints for pip: `make test-oldest`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"

FOR_USERS = ("server", "otel", "torch", "cpu")
"""Extras. What only developers have is as `constraints.txt` says, and nobody else's."""

AT_LEAST = re.compile(r"(?P<name>[\w.-]+)>=(?P<version>[\w.]+)")


def oldest(requirement: str) -> str:
    """The constraint to the least version that a requirement allows.

    Raises:
        ValueError: It names none.
    """
    found = AT_LEAST.match(requirement)
    if found is None:
        raise ValueError(f"{requirement!r} in pyproject.toml names no least version: write name>=version")
    return f"{found['name']}=={found['version']}"


def constraints() -> list[str]:
    """One for each thing that is installed for users."""
    project = tomllib.loads(PYPROJECT.read_text())["project"]
    extras = project["optional-dependencies"]
    groups = [project["dependencies"], *(extras[name] for name in FOR_USERS)]
    return sorted({oldest(requirement) for group in groups for requirement in group})


if __name__ == "__main__":
    sys.stdout.write("\n".join(constraints()) + "\n")
