"""The memory of another process, page by page, as whoever runs the machine could read it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

MAPPED = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+ *(.*)")
KERNELS = ("[vvar", "[vdso", "[vsyscall")


def addresses_of(needle: bytes, pid: int) -> set[int]:
    """Where these bytes stand in what a process can write to.

    Skips the test where that cannot be looked into.
    """
    try:
        return {start + at for start, part in _writable(pid) for at in _places(part, needle)}
    except (FileNotFoundError, PermissionError) as refused:
        pytest.skip(f"the memory of another process cannot be read here: {refused}")


def _writable(pid: int) -> Iterator[tuple[int, bytes]]:
    process = Path("/proc") / str(pid)
    maps = (process / "maps").read_text().splitlines()
    with (process / "mem").open("rb", buffering=0) as memory:
        for line in maps:
            found = MAPPED.match(line)
            if found is None or "w" not in found[3] or found[4].startswith(KERNELS):
                continue
            start, stop = int(found[1], 16), int(found[2], 16)
            try:
                memory.seek(start)
                yield start, memory.read(stop - start)
            except (OSError, OverflowError):
                continue  # given back meanwhile


def _places(part: bytes, needle: bytes) -> Iterator[int]:
    at = part.find(needle)
    while at >= 0:
        yield at
        at = part.find(needle, at + 1)
