"""Keys and values of what was found, into arrays and in parts, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from recollect_server.application.commands import Coming, Found, Search
from recollect_server.application.pairs import PART_BYTES, RowHits, with_pairs
from recollect_server.domain.arrays import RAW_TYPES, DenseArray, Int64, Raw, from_float32
from recollect_server.domain.bank import Bank
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.steps import UNBOUNDED, Steps
from recollect_server.domain.usage import Usage
from recollect_server.engine.cpu import CpuDevice
from tests.unit.server.use_cases import steps_of

HEADS, QUERY_HEADS, ENTRIES = 2, 4, 50

SHAPES = {
    "rows that fit into a part": (3, 5, 4, 8),
    "heads that do not": (2, 700, 8, 96),
    "heads of several parts": (2, 900, 32, 32),
    "tokens larger than a part": (2, 2, 1024, 520),
    "no tokens": (2, 0, 4, 8),
}
"""Rows, tokens, top_k and elements."""


def bank_of(dim: int, rng: np.random.Generator) -> tuple[Bank, DenseArray, DenseArray]:
    """A bank, its keys and its values; those have an element more."""
    spec = NamespaceSpec((0,), HEADS, dim, dim + 1, ENTRIES, Dtype.FLOAT16)
    bank = Bank(spec, CpuDevice().store(spec), first_sequence=0, usage=Usage())
    keys, values = (
        from_float32(rng.standard_normal((HEADS, ENTRIES, size)).astype(np.float32), Dtype.FLOAT16)
        for size in (dim, dim + 1)
    )
    bank.add(keys, values, now_s=0.0)
    return bank, keys, values


def gathered(stored: DenseArray, slots: Int64) -> NDArray[np.float32]:
    """Float32 [Hq, T, K, D] of slots [Hq, T, K]; 0 for -1."""
    rows = stored.float32()[np.arange(QUERY_HEADS)[:, None, None] * HEADS // QUERY_HEADS, slots]
    rows[slots < 0] = 0
    return rows


def kept(steps: Steps[Found], ended: list[Found]) -> Steps[None]:
    """The same steps; what they end with is kept."""
    ended.append((yield from steps))


class Taken:
    """Progress that keeps what comes."""

    def __init__(self, dtype: Dtype) -> None:
        self.dtype = RAW_TYPES[dtype]
        self.begun: list[Found] = []
        self.parts: list[Raw] = []
        self.is_copied: list[bool] = []

    def begin(self, found: Found, *, keys: Coming | None, values: Coming | None) -> None:
        del keys, values
        self.begun.append(found)

    def room(self, size: int) -> Raw:
        assert self.begun
        self._room = np.full(size, np.nan, dtype=self.dtype)
        return self._room

    def fetched(self, size: int) -> None:
        self.parts.append(self._room[:size])
        self.is_copied.append(size < self._room.size)


@pytest.mark.parametrize("budget", [1, 100_000, UNBOUNDED])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [Dtype.FLOAT16, Dtype.FLOAT32])
def test_pairs_are_the_same_in_arrays_and_in_parts(
    shape: tuple[int, int, int, int], budget: int, dtype: Dtype
) -> None:
    """A caller gets another entry's keys or values, for some ways of sending them and loads of the device."""
    rows, tokens, top_k, dim = shape
    rng = np.random.default_rng(0)
    bank, keys, values = bank_of(dim, rng)
    slots = rng.integers(-1, ENTRIES, size=(rows, QUERY_HEADS, tokens, top_k))
    slots[-1] = -1  # there is no such stream
    hits: list[RowHits] = [(bank if row < rows - 1 else None, slots[row]) for row in range(rows)]
    wanted = [np.stack([gathered(stored, of_row) for of_row in slots]) for stored in (keys, values)]
    found = Found(np.zeros(slots.shape, np.float32), slots, None, None, ())
    coming = [Coming(array.shape, dtype) for array in wanted]
    taken, ended = Taken(dtype), list[Found]()
    for progress in (None, taken):
        queries = DenseArray(np.zeros(0, np.float16), Dtype.FLOAT16)
        command = Search("n", 0, (), queries=queries, top_k=top_k, progress=progress)
        steps = with_pairs(found, hits, command, keys=coming[0], values=coming[1])
        steps_of(kept(steps, ended), budget)
        if progress is None:
            for pairs, array in zip((ended[0].keys, ended[0].values), wanted, strict=True):
                assert pairs is not None
                assert pairs.dtype is dtype
                np.testing.assert_array_equal(pairs.float32(), array)
    assert taken.begun == [found]
    assert (ended[1].keys, ended[1].values) == (None, None)
    token_bytes = top_k * (dim + 1) * dtype.itemsize_bytes
    assert all(part.nbytes <= max(PART_BYTES, token_bytes) for part in taken.parts)
    copied = sum(part.size for part, is_copied in zip(taken.parts, taken.is_copied, strict=True) if is_copied)
    assert 10 * copied <= sum(part.size for part in taken.parts)
    flat = np.concatenate([np.zeros(0, np.float32), *(part.astype(np.float32) for part in taken.parts)])
    np.testing.assert_array_equal(flat, np.concatenate([array.reshape(-1) for array in wanted]))
