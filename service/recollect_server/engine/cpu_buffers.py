"""Keys and values of a bank in NumPy arrays."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np

from recollect_server.domain import work
from recollect_server.domain.arrays import LINE_BYTES, RAW_TYPES, DenseArray, Int64, Raw, dtype_in, to_float32
from recollect_server.domain.ring import Write
from recollect_server.domain.spec import NamespaceSpec
from recollect_server.domain.steps import Steps
from recollect_server.engine.reserve import reserve
from recollect_server.engine.zeroing import zero

TOUCHED_BYTES = 1024 * 1024
"""Of a head, that are written to for the first time in one step: at most two large pages are found in it."""


class CpuBuffers:
    """What CPU stores have in common: keys [Hkv, slots, Dk] and values [Hkv, slots, Dv], apart."""

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
        row_bytes = self._keys.itemsize * max(self._spec.key_dim, self._spec.value_dim)
        together = max(1, TOUCHED_BYTES // row_bytes)
        while self._touched < slots:
            part = slice(self._touched, min(slots, self._touched + together))
            for rows in (*self._keys, *self._values):
                rows[part] = 0
                yield work.moved_to_new(rows[part].nbytes)
            self._touched = part.stop

    def write(self, writes: Sequence[Write], keys: DenseArray, values: DenseArray) -> None:
        """See `Store.write`."""
        for write in writes:
            self._keys[:, write.slots] = keys.raw[:, write.tokens]
            self._values[:, write.slots] = values.raw[:, write.tokens]
            self._touched = max(self._touched, write.slots.stop)  # or it would be zeroed

    def compact(self, slots: Int64) -> None:
        """See `Store.compact`."""
        # Copies of both before either moves: where there is no memory for one, nothing has moved.
        chosen = [rows[:, slots] for rows in (self._keys, self._values)]
        for rows, copies in zip((self._keys, self._values), chosen, strict=True):
            rows[:, : slots.size] = copies
            copies.fill(0)  # they are to leave nothing behind either

    def clear(self) -> None:
        """See `Store.clear`."""
        zero(self._keys)
        zero(self._values)
        self._use(self._room_for(0), 0)
        self._touched = 0

    def _room_for(self, slots: int) -> tuple[Raw, Raw]:
        """Buffers for keys and values of so many slots, or more."""
        spec = self._spec
        keys, values = (reserve(spec, slots, dim) for dim in (spec.key_dim, spec.value_dim))
        if keys is None or values is None:
            return _zeros(spec, slots, spec.key_dim), _zeros(spec, slots, spec.value_dim)
        return keys, values

    def _use(self, room: tuple[Raw, Raw], slots: int) -> None:
        self._room = room
        self._keys, self._values = (rows[:, :slots] for rows in room)

    def keys(self, slots: Int64, *, into: Raw | None = None, head: int | None = None) -> DenseArray:
        """See `Store.keys`."""
        return self._pairs(self._keys, slots, into, head)

    def values(self, slots: Int64, *, into: Raw | None = None, head: int | None = None) -> DenseArray:
        """See `Store.values`."""
        return self._pairs(self._values, slots, into, head)

    def _pairs(self, buffer: Raw, slots: Int64, into: Raw | None, head: int | None) -> DenseArray:
        query_heads = slots.shape[0]
        pairs = np.empty((*slots.shape, buffer.shape[2]), dtype=buffer.dtype) if into is None else into
        for asking in range(query_heads):
            asked = self._spec.head_of(asking, query_heads) if head is None else head
            self._gather_rows(buffer[asked], slots[asking], pairs[asking])
        return DenseArray(pairs, dtype_in(pairs, self._spec.dtype))

    def _gather_rows(self, rows: Raw, slots: Int64, into: Raw) -> None:
        """Rows [slots, D] at `slots` [T, K], to `into` [T, K, D], which may be wider; 0 for -1."""
        present = slots >= 0
        chosen = rows[slots[present]]
        into[present] = chosen if into.dtype == chosen.dtype else to_float32(chosen, self._spec.dtype)
        into[~present] = 0


def _zeros(spec: NamespaceSpec, slots: int, dim: int) -> Raw:
    """From a line of the cache on: NumPy's own begin 16 bytes after one."""
    dtype: np.dtype[np.float32 | np.float16 | np.uint16] = np.dtype(RAW_TYPES[spec.dtype])
    size_bytes = spec.heads * slots * dim * dtype.itemsize
    memory = np.zeros(size_bytes + LINE_BYTES, dtype=np.uint8)
    first = -memory.ctypes.data % LINE_BYTES
    return memory[first : first + size_bytes].view(dtype).reshape(spec.heads, slots, dim)


def _copy(old: Raw, new: Raw, live: Sequence[slice], left: int) -> Generator[int, int, int]:
    """Slots of buffers [Hkv, slots, D], some at a time; returns what the next step may take."""
    first, each = 0, work.moved_to_new(old.shape[0] * old.shape[2] * old.itemsize)
    for segment in live:
        at = segment.start
        while at < segment.stop:
            size = min(segment.stop - at, max(1, left // each))
            new[:, first : first + size] = old[:, at : at + size]
            at, first = at + size, first + size
            left = yield size * each
    return left
