"""Sets of slots as a few ranges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray


class Ranges:
    """Disjoint ranges of slots, in the order in which they were added."""

    __slots__ = ("_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[slice] = []
        self._size = 0

    def __len__(self) -> int:
        """How many slots."""
        return self._size

    def __iter__(self) -> Iterator[slice]:
        return iter(self._parts)

    def add(self, new: slice) -> None:
        """Adds slots; those that are there already move to the end."""
        kept = [part for old in self._parts for part in _without(old, new)]
        if kept and kept[-1].stop == new.start:
            new = slice(kept.pop().start, new.stop)
        self._parts = [*kept, new]
        self._count()

    def remove(self, old: slice) -> None:
        """Removes slots, those that there are."""
        self._parts = [part for there in self._parts for part in _without(there, old)]
        self._count()

    def take(self, most: int) -> slice:
        """Takes out at most so many neighbouring slots, from those that were added first."""
        first = self._parts[0]
        taken = slice(first.start, min(first.stop, first.start + most))
        self._parts = [*_without(first, taken), *self._parts[1:]]
        self._count()
        return taken

    def _count(self) -> None:
        self._size = length_of(self._parts)


def length_of(parts: Iterable[slice]) -> int:
    """How much is in all of them."""
    return sum(part.stop - part.start for part in parts)


def common(some: Iterable[slice], others: Iterable[slice]) -> list[slice]:
    """What is in both."""
    both = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a in some for b in others]
    return [part for part in both if part.start < part.stop]


def those_where(chosen: NDArray[np.bool_], *, first: int) -> Iterator[slice]:
    """Ranges of the slots from `first` on that are chosen [n]."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen, [0]]).astype(np.int8)))
    for start, stop in edges.reshape(-1, 2).tolist():
        yield slice(first + start, first + stop)


def placed(entries: int, slots: int, *, head: int, most: int) -> Iterator[tuple[slice, int]]:
    """Where entries lie that are put from slot `head` on, around the end: parts, each with its first slot.

    Args:
        entries: How many.
        slots: Of the buffer.
        head: Where the first lies.
        most: In one part.
    """
    first = 0
    while first < entries:
        place = (head + first) % slots
        last = min(entries, first + most, first + slots - place)
        yield slice(first, last), place
        first = last


def _without(old: slice, new: slice) -> list[slice]:
    parts = [slice(old.start, min(old.stop, new.start)), slice(max(old.start, new.stop), old.stop)]
    return [part for part in parts if part.start < part.stop]
