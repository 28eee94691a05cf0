"""Keys and values of what a search found, fetched a part at a time: all at once they hold up everybody."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from recollect_server.application.commands import Coming, Found, Progress, Search
from recollect_server.domain import work
from recollect_server.domain.arrays import RAW_TYPES, DenseArray, Int64, Raw
from recollect_server.domain.bank import Bank
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.steps import Steps

PART_BYTES = 1024 * 1024
"""Of what is handed on, about: it stays in a cache."""

SCORE_BYTES, OFFSET_BYTES = 4, 4
"""Of a float32 score, and of an id as an int32 offset, as they travel."""

RowHits = tuple[Bank | None, Int64]
"""Of one row: a bank that was searched, or None; and slots [Hq, T, K], -1 where there is no entry."""


def pairs_dtype(spec: NamespaceSpec, command: Search) -> Dtype:
    """Of keys and values in its answer."""
    return spec.dtype if command.pairs_dtype is None else command.pairs_dtype


def hit_bytes(spec: NamespaceSpec, command: Search) -> int:
    """What one of top_k takes in its answer."""
    pair_dims = spec.key_dim * command.include_keys + spec.value_dim * command.include_values
    return SCORE_BYTES + OFFSET_BYTES + pair_dims * pairs_dtype(spec, command).itemsize_bytes


class Target(Protocol):
    """What takes keys or values of `dim` elements in the order in which they lie in memory."""

    dim: int
    itemsize: int

    def room(self, *shape: int) -> Raw:
        """Where the next ones are written, before it is asked again; not cleared."""
        ...

    def end(self) -> None:
        """All have been written."""
        ...


class Whole:
    """An array [..., D] that takes all. Implements `Target`."""

    def __init__(self, pairs: Raw) -> None:
        self.dim, self.itemsize = pairs.shape[-1], pairs.itemsize
        self._elements = pairs.reshape(-1)
        self._used = 0

    def room(self, *shape: int) -> Raw:
        """See `Target`."""
        first, self._used = self._used, self._used + math.prod(shape)
        return self._elements[first : self._used].reshape(shape)

    def end(self) -> None:
        """See `Target`."""


class Parts:
    """Hands them on, some at a time. Implements `Target`.

    Args:
        coming: All of them.
        progress: Takes them.
    """

    def __init__(self, coming: Coming, progress: Progress) -> None:
        self.dim, self.itemsize = coming.shape[-1], coming.dtype.itemsize_bytes
        self._left = math.prod(coming.shape)  # elements that there was no room for yet
        self._progress = progress
        self._part: Raw | None = None
        self._used = 0

    def room(self, *shape: int) -> Raw:
        """See `Target`."""
        size, part = math.prod(shape), self._part
        if part is None or self._used + size > part.size:
            self.end()
            # A part that is not filled has to be copied: one that nothing else will fit into is of this size.
            several = min(self._left, PART_BYTES // self.itemsize)
            part = self._part = self._progress.room(size if 2 * size > several else several)
        first, self._used = self._used, self._used + size
        self._left -= size
        return part[first : self._used].reshape(shape)

    def end(self) -> None:
        """See `Target`."""
        if self._used:
            self._progress.fetched(self._used)
        self._part, self._used = None, 0


def with_pairs(
    found: Found, rows: Sequence[RowHits], command: Search, *, keys: Coming | None, values: Coming | None
) -> Steps[Found]:
    """What was found, with the keys and values that are wanted, unless the command's progress takes them.

    Args:
        found: Without them.
        rows: The same, row by row.
        command: Says where they are to be.
        keys: None: they are not wanted.
        values: The same.
    """
    progress = command.progress
    if progress is not None:
        progress.begin(found, keys=keys, values=values)
        yield from _fetch(rows, _parts(keys, progress), _parts(values, progress))
        return found
    arrays = _array(keys, command), _array(values, command)
    yield from _fetch(rows, *(None if array is None else Whole(array.raw) for array in arrays))
    return replace(found, keys=arrays[0], values=arrays[1])


def _parts(coming: Coming | None, progress: Progress) -> Parts | None:
    return None if coming is None else Parts(coming, progress)


def _array(coming: Coming | None, command: Search) -> DenseArray | None:
    """Not cleared."""
    if coming is None:
        return None
    of: np.dtype[np.float32 | np.float16 | np.uint16] = np.dtype(RAW_TYPES[coming.dtype])
    room = command.pairs_in
    raw = np.empty(coming.shape, of) if room is None else room.array(coming.shape, of)
    return DenseArray(raw, coming.dtype)


def _fetch(rows: Sequence[RowHits], keys: Target | None, values: Target | None) -> Steps[None]:
    """All keys, then all values."""
    left = yield 0
    for fetch, target in ((Bank.keys, keys), (Bank.values, values)):
        if target is not None:
            for row in rows:
                left = yield from _fetch_row(fetch, row, target, left)
            target.end()


def _fetch_row(
    fetch: Callable[..., object], row: RowHits, target: Target, left: int
) -> Generator[int, int, int]:
    """All heads together, or one by one where they take more than a part; returns what the next step may."""
    bank, slots = row
    heads, tokens, top_k = slots.shape
    token_bytes = top_k * target.dim * target.itemsize
    if heads * tokens * token_bytes <= PART_BYTES:
        return (yield from _fetch_block(fetch, row, target, left))
    step = max(1, PART_BYTES // token_bytes)
    for asking in range(heads):
        head = None if bank is None else bank.spec.head_of(asking, heads)
        for first in range(0, tokens, step):
            block = bank, slots[asking : asking + 1, first : first + step]
            left = yield from _fetch_block(fetch, block, target, left, head=head)
    return left


def _fetch_block(
    fetch: Callable[..., object], block: RowHits, target: Target, left: int, *, head: int | None = None
) -> Generator[int, int, int]:
    bank, slots = block
    heads, tokens, top_k = slots.shape
    into = target.room(*slots.shape, target.dim)
    if bank is None:
        into[...] = 0
        return left
    each = work.gathered(heads * top_k, target.dim)
    first = 0
    while first < tokens:
        size = min(tokens - first, max(1, left // each))
        part = slice(first, first + size)
        fetch(bank, slots[:, part], into=into[:, part], head=head)
        first += size
        left = yield size * each
    return left
