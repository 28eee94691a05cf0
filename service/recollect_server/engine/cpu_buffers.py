"""Keys and values of a bank in NumPy arrays."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from recollect_server.domain import int8_rows, work
from recollect_server.domain.arrays import (
    LINE_BYTES,
    RAW_TYPES,
    DenseArray,
    Float32,
    Int64,
    Raw,
    RowBytes,
    dtype_in,
    from_float32,
    to_float32,
)
from recollect_server.domain.ring import Write
from recollect_server.domain.spec import Dtype, NamespaceSpec, ValueDtype
from recollect_server.domain.steps import Steps
from recollect_server.engine.reserve import reserve
from recollect_server.engine.zeroing import zero

Scalar = TypeVar("Scalar", bound=np.generic)

TOUCHED_BYTES = 1024 * 1024
"""Of a head, that are written to for the first time in one step: at most two large pages are found in it."""

MOVED_TOGETHER, MOVED_BYTES = 1024, 4 * 1024 * 1024
"""Entries that move together in one step, at most, and their bytes, for which there is a second place."""


class CpuBuffers:
    """What CPU stores have in common: keys [Hkv, slots, Dk] and values [Hkv, slots, Dv], apart.

    Values that are stored as integers are rows of bytes, [Hkv, slots, Dv + STEP_BYTES].
    """

    __slots__ = ("_keys", "_room", "_spec", "_touched", "_values")

    def __init__(self, spec: NamespaceSpec) -> None:
        self._spec = spec
        self._touched = 0  # slots; beyond them nothing was ever written
        self._use(self._room_for(0), 0)

    def growing(self, allocated: int, live: Sequence[slice]) -> Steps[None]:
        """See `Store.growing`. Large buffers grow where they lie, as long as nothing has left them."""
        left = yield 0
        if allocated <= self._room[0].shape[1] and sum(segment.start for segment in live) == 0:
            self._use(self._room, allocated)
            return
        room = self._room_for(allocated)
        keys, values = (rows[:, :allocated] for rows in room)
        try:
            for old, new in ((self._keys, keys), (self._values, values)):
                left = yield from _copy(old, new, live, left)
        except BaseException:
            zero(keys)
            zero(values)
            raise
        zero(self._keys)
        zero(self._values)
        self._use(room, allocated)
        is_reserved = room[0].shape[1] > allocated
        self._touched = sum(part.stop - part.start for part in live) if is_reserved else allocated

    def touch(self, slots: int) -> Steps[None]:
        """See `Store.touch`. Head by head: each has pages of its own."""
        yield 0
        row_bytes = max(rows.itemsize * rows.shape[2] for rows in (self._keys, self._values))
        together = max(1, TOUCHED_BYTES // row_bytes)
        while self._touched < slots:
            part = slice(self._touched, min(slots, self._touched + together))
            for rows in (*self._keys, *self._values):
                rows[part] = 0
                yield work.moved_to_new(rows[part].nbytes)
            self._touched = part.stop

    def write(self, writes: Sequence[Write], keys: DenseArray, values: DenseArray) -> None:
        """See `Store.write`."""
        v = self._packed(values) if self._spec.value_dtype is ValueDtype.INT8 else values.raw
        for write in writes:
            self._keys[:, write.slots] = keys.raw[:, write.tokens]
            self._values[:, write.slots] = v[:, write.tokens]
            self._touched = max(self._touched, write.slots.stop)  # or it would be zeroed

    def compacting(self, slots: Int64, head: int) -> Steps[None]:
        """See `Store.compacting`."""
        left = yield 0
        places = (head + np.arange(slots.size)) % max(1, self._keys.shape[1])
        first = int(np.argmax(slots != places)) if (slots != places).any() else slots.size
        # All that takes memory comes first.
        together = max(1, min(MOVED_TOGETHER, MOVED_BYTES // self._spec.entry_bytes))
        scratch = [np.empty((len(rows), together, rows.shape[2]), rows.dtype) for rows in self._rows]
        each = 2 * work.moved(self._spec.entry_bytes)
        while first < slots.size:
            size = min(slots.size - first, together, max(1, left // each))
            place = int(places[first])
            size = min(size, self._keys.shape[1] - place)
            for rows, copies in zip(self._rows, scratch, strict=True):
                for row, copied in zip(rows, copies, strict=True):
                    np.take(row, slots[first : first + size], axis=0, out=copied[:size], mode="clip")
                    row[place : place + size] = copied[:size]
            first += size
            left = yield size * each
        for copies in scratch:
            copies.fill(0)  # they are to leave nothing behind

    @property
    def _rows(self) -> tuple[Raw, Raw | RowBytes]:
        return self._keys, self._values

    def clear(self) -> None:
        """See `Store.clear`."""
        zero(self._keys)
        zero(self._values)
        self._use(self._room_for(0), 0)
        self._touched = 0

    def _room_for(self, slots: int) -> tuple[Raw, Raw | RowBytes]:
        """Buffers for keys and values of so many slots, or more."""
        spec, sizes = self._spec, (self._spec.key_bytes, self._spec.value_bytes)
        keys, values = (reserve(spec, slots, row_bytes) for row_bytes in sizes)
        if keys is None or values is None:
            keys, values = (_zeros(spec, slots, row_bytes) for row_bytes in sizes)
        stored: np.dtype[np.float32 | np.float16 | np.uint16] = np.dtype(RAW_TYPES[spec.dtype])
        return keys.view(stored), values.view(stored) if spec.value_dtype is None else values

    def _use(self, room: tuple[Raw, Raw | RowBytes], slots: int) -> None:
        self._room = room
        self._keys, self._values = room[0][:, :slots], room[1][:, :slots]

    def keys(self, slots: Int64, *, into: Raw | None = None, head: int | None = None) -> DenseArray:
        """See `Store.keys`."""
        spec = self._spec
        return self._pairs(self._keys, slots, into, head, dim=spec.key_dim, dtype=spec.dtype)

    def values(self, slots: Int64, *, into: Raw | None = None, head: int | None = None) -> DenseArray:
        """See `Store.values`."""
        spec = self._spec
        return self._pairs(self._values, slots, into, head, dim=spec.value_dim, dtype=spec.stored_values)

    def _pairs(
        self,
        buffer: Raw | RowBytes,
        slots: Int64,
        into: Raw | None,
        head: int | None,
        *,
        dim: int,
        dtype: Dtype | ValueDtype,
    ) -> DenseArray:
        query_heads = slots.shape[0]
        raw = np.empty((*slots.shape, dim), RAW_TYPES[self._spec.dtype]) if into is None else into
        pairs = DenseArray(raw, dtype_in(raw, self._spec.dtype))
        for asking in range(query_heads):
            asked = self._spec.head_of(asking, query_heads) if head is None else head
            self._gather_rows(buffer[asked], slots[asking], pairs.row(asking), dtype)
        return pairs

    def _gather_rows(
        self, rows: Raw | RowBytes, slots: Int64, into: DenseArray, dtype: Dtype | ValueDtype
    ) -> None:
        """Rows [slots, D] of `dtype`, at `slots` [T, K], to `into` [T, K, D] of that or another; 0 for -1."""
        present = slots >= 0
        chosen = rows[slots[present]]
        is_as_stored = into.dtype is dtype
        into.raw[present] = chosen if is_as_stored else from_float32(widened(chosen, dtype), into.dtype).raw
        into.raw[~present] = 0

    def _packed(self, values: DenseArray) -> RowBytes:
        """Values [Hkv, T, Dv] as rows of integers."""
        return int8_rows.pack(values.float32())


def widened(rows: Raw | RowBytes, dtype: Dtype | ValueDtype) -> Float32:
    """Rows as they are stored, in float32."""
    if isinstance(dtype, ValueDtype):
        return int8_rows.unpack(cast("RowBytes", rows))
    return to_float32(cast("Raw", rows), dtype)


def _zeros(spec: NamespaceSpec, slots: int, row_bytes: int) -> RowBytes:
    """From a line of the cache on: NumPy's own begin 16 bytes after one."""
    size_bytes = spec.heads * slots * row_bytes
    memory = np.zeros(size_bytes + LINE_BYTES, dtype=np.uint8)
    first = -memory.ctypes.data % LINE_BYTES
    return memory[first : first + size_bytes].reshape(spec.heads, slots, row_bytes)


def _copy(
    old: NDArray[Scalar], new: NDArray[Scalar], live: Sequence[slice], left: int
) -> Generator[int, int, int]:
    """Slots of buffers [Hkv, slots, D], some at a time; returns what the next step may take.

    Head by head: each has pages of its own, and to find new ones may take a system long.
    """
    first, each = 0, work.moved_to_new(old.shape[2] * old.itemsize)
    for segment in live:
        at = segment.start
        while at < segment.stop:
            size = min(segment.stop - at, max(1, left // (len(old) * each)))
            for head in range(len(old)):
                new[head, first : first + size] = old[head, at : at + size]
                left = yield size * each
            at, first = at + size, first + size
    return left
