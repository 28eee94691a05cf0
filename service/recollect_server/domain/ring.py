"""Sequence arithmetic of a ring buffer: which entry lies in which slot. No data, only integers.

A ring is a window of `allocated` slots that grows by doubling up to `capacity`. Its live entries are
`count` slots from `head` on, modulo `allocated`, oldest first. Ids ascend along them but may have gaps,
because single entries can be evicted; slots never have gaps, because the ring is compacted then. So a
search runs over at most two dense slices and no mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from recollect_server.domain.ages import Ages

ALLOCATED_MIN = 64
"""Slots of a ring's first buffer (or its capacity, if that is smaller)."""

Int64 = NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Write:
    """Where new entries go: token slice `tokens` of the call to slot slice `slots` of the buffer."""

    tokens: slice
    slots: slice


class Ring:
    """The bookkeeping of one bank: ids and times of its entries, and the slots they lie in.

    Light, because there is one for each layer of each stream: ids take no memory until single entries
    are evicted (then 8 bytes per allocated slot), and times 12 bytes for each second in which entries came.

    Args:
        capacity: Most entries that live at once.
        first_sequence: Id of the first entry ever added.
    """

    __slots__ = ("_ages", "_ids", "allocated", "capacity", "count", "head", "next_sequence")

    def __init__(self, capacity: int, *, first_sequence: int) -> None:
        self.capacity = capacity
        self.next_sequence = first_sequence
        self.allocated = 0
        self.head = 0
        self.count = 0
        # By slot; None while the live ids are the last `count` before next_sequence, without a gap.
        self._ids: Int64 | None = None
        self._ages = Ages()

    @property
    def first_id(self) -> int:
        """Id of the oldest entry; `next_sequence` if there is none."""
        if self._ids is not None and self.count:
            return int(self._ids[self.head])
        return self.next_sequence - self.count

    def allocation_for(self, tokens: int) -> int:
        """Slots that the ring has to have before `tokens` entries are pushed."""
        needed = min(self.capacity, self.count + tokens)
        if needed <= self.allocated:
            return self.allocated
        doubled = max(needed, 2 * self.allocated, ALLOCATED_MIN)
        return min(self.capacity, doubled)

    def ids_in_front(self, allocated: int) -> Int64 | None:
        """Ids by slot, once the entries lie in front of a window of `allocated`; None if they are implicit.

        Made before a store moves them: where there is no memory for ids, nothing has moved then.
        """
        if self._ids is None:
            return None
        ids = np.empty(allocated, dtype=np.int64)
        ids[: self.count] = self.ids()
        return ids

    def ids_kept(self, order: Int64) -> Int64:
        """Ids by slot, once the entries at `order` (ascending, 0 = oldest) lie from `head` on; likewise."""
        ids = np.empty(self.allocated, dtype=np.int64)
        ids[self.slots_of_order(np.arange(order.size))] = self.ids()[order]
        return ids

    def grow(self, allocated: int, *, ids: Int64 | None = None) -> None:
        """Moves to a larger window, in which the entries lie from slot 0 on.

        Args:
            allocated: Its slots.
            ids: Of `ids_in_front`.
        """
        self._ids = ids
        self.allocated, self.head = allocated, 0

    def writes_for(self, tokens: int) -> list[Write]:
        """What of `tokens` new entries to write where, before they are pushed; changes nothing.

        Of more than the capacity only the last are kept.
        """
        kept = min(tokens, self.capacity)
        # Where all make room the ring begins anew.
        stay = self.count > self._to_drop(kept)
        start = (self.head + self.count) % self.allocated if stay else 0
        writes, token = [], tokens - kept
        for slots in _wrapped(start, kept, self.allocated):
            size = slots.stop - slots.start
            writes.append(Write(tokens=slice(token, token + size), slots=slots))
            token += size
        return writes

    def push(self, tokens: int, *, second: int) -> int:
        """Takes in `tokens` new entries, which were written as `writes_for` says; the oldest make room.

        Of a call longer than the capacity only the last entries are kept; the others get their ids
        and are evicted at once.

        Returns:
            How many entries were evicted.
        """
        kept = min(tokens, self.capacity)
        writes, evicted = self.writes_for(tokens), max(0, self.count + tokens - self.capacity)
        self.drop_oldest(self._to_drop(kept))
        if self._ids is not None:
            for write in writes:
                first, last = (self.next_sequence + at for at in (write.tokens.start, write.tokens.stop))
                self._ids[write.slots] = np.arange(first, last)
        if kept:
            self._ages.note(self.next_sequence, second)
        self.count += kept
        self.next_sequence += tokens
        return evicted

    def drop_oldest(self, entries: int) -> None:
        """Forgets the oldest entries: pointer arithmetic, no data moves."""
        entries = min(entries, self.count)
        self.count -= entries
        self.head = (self.head + entries) % self.allocated if self.count else 0
        if entries:
            self._forget_gaps()

    def keep(self, count: int, *, ids: Int64) -> None:
        """Compacts the ring to `count` entries, which lie from `head` on without gaps now.

        Args:
            count: How many were kept.
            ids: Of `ids_kept`.
        """
        self._ids = ids
        self.head, self.count = self.head if count else 0, count
        self._forget_gaps()

    def segments(self) -> list[slice]:
        """The live slots, oldest first: no slice, one, or two where the ring wraps."""
        return _wrapped(self.head, self.count, self.allocated)

    def ids(self) -> Int64:
        """The live ids, ascending; a copy."""
        if self._ids is not None:
            return self._in_order(self._ids)
        return np.arange(self.next_sequence - self.count, self.next_sequence, dtype=np.int64)

    def seconds(self) -> NDArray[np.uint32]:
        """When each live entry was added, in order of ids."""
        return self._ages.seconds_of(self.ids())

    def ids_of_slots(self, slots: Int64) -> Int64:
        """Ids of the entries in `slots` (any shape); -1 stays -1."""
        if self.allocated == 0:
            return np.full(slots.shape, -1, dtype=np.int64)
        if self._ids is not None:
            return np.where(slots >= 0, self._ids[slots], np.int64(-1))
        ids = slots - self.head
        if self.head:  # the ring may wrap: slots before its head come last
            ids += (ids >> 63) & self.allocated
        ids += self.next_sequence - self.count
        if slots.min(initial=0) < 0:
            ids[slots < 0] = -1
        return ids

    def slots_of_ids(self, ids: Int64) -> Int64:
        """Slots of `ids` (any shape); -1 where an id is not live."""
        if self.count == 0:
            return np.full(ids.shape, -1, dtype=np.int64)
        if self._ids is None:
            order = ids - (self.next_sequence - self.count)
            found = (order >= 0) & (order < self.count)
        else:
            live = self.ids()
            order = np.searchsorted(live, ids).clip(max=live.size - 1).astype(np.int64)
            found = live[order] == ids
        return np.where(found, self.slots_of_order(order), np.int64(-1))

    def slots_of_order(self, order: Int64) -> Int64:
        """Slots of the entries at positions `order` (0 = oldest)."""
        return (self.head + order) % max(1, self.allocated)

    def _to_drop(self, kept: int) -> int:
        """How many of the oldest make room for so many that are kept."""
        return min(self.count, max(0, self.count + kept - self.capacity))

    def _forget_gaps(self) -> None:
        """Drops ids that have become implicit again, and times of entries that are gone."""
        if self._ids is not None and self.first_id == self.next_sequence - self.count:
            self._ids = None
        self._ages.forget_before(self.first_id)

    def _in_order(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        return np.concatenate([array[s] for s in self.segments()] or [array[:0]])


def _wrapped(start: int, size: int, allocated: int) -> list[slice]:
    """Slot slices of `size` slots from `start` on in a window of `allocated`."""
    if size == 0:
        return []
    first = min(size, allocated - start)
    slices = [slice(start, start + first)]
    if size > first:
        slices.append(slice(0, size - first))
    return slices
