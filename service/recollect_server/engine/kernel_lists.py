"""The compiled kernels for inverted lists: which are nearest, and the best entries that are in them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int32, c_int64, c_void_p

import numpy as np
from numpy.typing import NDArray

from recollect_server.domain.arrays import Float32, Int64, Raw
from recollect_server.domain.spec import Dtype
from recollect_server.engine.kernels import DTYPES, Best, address, library

Int32 = NDArray[np.int32]


class _Nearest(ctypes.Structure):
    _fields_ = (
        ("queries", c_void_p),
        ("centroids", c_void_p),
        ("count", c_int64),
        *((name, c_int32) for name in ("lists", "dim", "probes", "first", "width")),
        ("nearest", c_void_p),
    )


class _Probe(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("lists", "queries", "keys", "nearest", "offsets", "askers")),
        ("live", c_int64 * 4),
        *((name, c_int32) for name in ("width", "first", "dim", "dtype")),
    )


class Lists:
    """Inverted lists: which slots belong to which centroid.

    Args:
        lists: How many.
        slots: Of the buffer.
    """

    __slots__ = ("count", "handle", "slots")

    def __init__(self, lists: int, slots: int) -> None:
        self.count, self.slots = lists, slots
        self.handle: int | None = library().rc_lists_new(lists, slots)

    def __del__(self) -> None:
        if self.handle is not None:
            library().rc_lists_free(self.handle)
            self.handle = None

    @property
    def bytes(self) -> int:
        """What they take."""
        size: int = library().rc_lists_bytes(self.handle)
        return size

    def put(self, first_slot: int, assigned: Int64) -> None:
        """Puts slots from `first_slot` on into lists `assigned` [n], out of those they were in; -1: none."""
        library().rc_lists_put(self.handle, first_slot, assigned.size, address(assigned))

    def sizes(self) -> Int32:
        """Slots in each list."""
        sizes = np.empty(self.count, dtype=np.int32)
        library().rc_lists_sizes(self.handle, address(sizes))
        return sizes

    def of_slots(self) -> Int32:
        """The list of each slot; -1 for none."""
        of_slot = np.empty(self.slots, dtype=np.int32)
        library().rc_lists_of(self.handle, address(of_slot))
        return of_slot

    def probe(self, best: Best, plan: Plan, keys: Raw, *, dtype: Dtype, live: Sequence[slice]) -> Probing:
        """To take the best entries of the lists of a plan into `best`.

        Args:
            best: Of N queries.
            plan: Which lists each of them asks.
            keys: [slots, D] of one head.
            dtype: What the bits of keys mean.
            live: At most two slices of slots; what is in none of them is left out.
        """
        return Probing(self, best, plan, keys, dtype=dtype, live=live)


class Plan:
    """Which lists each query asks: those whose centroids are nearest, and up to an eighth more.

    Args:
        queries: [N, D], contiguous.
        centroids: [L, D].
        probes: How many lists.
        first: How many of them are asked query by query; the others list by list.

    Attributes:
        lists: int32 [N, P or an eighth more], -1 for none; those that are asked first come first.
        offsets: int64 [L + 1], into the askers.
        askers: Queries int32 [...] that ask the other lists, by list.
    """

    __slots__ = ("askers", "first", "lists", "offsets", "queries")

    def __init__(self, queries: Float32, centroids: Float32, probes: int, *, first: int) -> None:
        (count, dim), lists = queries.shape, len(centroids)
        width = min(lists, probes + probes // 8 + 1)
        # With hardly more than these, the others are not worth another round.
        self.queries, self.first = queries, width if first >= probes else first
        self.lists = np.empty((count, width), dtype=np.int32)
        bound = _Nearest(
            address(queries),
            address(centroids),
            count,
            *(lists, dim, probes, self.first, width),
            address(self.lists),
        )
        library().rc_nearest(ctypes.byref(bound))
        self.offsets = np.empty(lists + 1, dtype=np.int64)
        self.askers = np.empty(count * (width - self.first), dtype=np.int32)
        addresses = address(self.offsets), address(self.askers)
        library().rc_invert(address(self.lists), count, width, self.first, lists, *addresses)


class Probing:
    """What `Lists.probe` gives; it may be done a few queries and lists at a time."""

    __slots__ = ("_best", "_bound", "_held")

    def __init__(
        self, lists: Lists, best: Best, plan: Plan, keys: Raw, *, dtype: Dtype, live: Sequence[slice]
    ) -> None:
        bounds = [bound for part in live for bound in (part.start, part.stop)]
        self._best, self._held = best, (lists, plan, keys)  # for as long as there are pointers to them
        self._bound = _Probe(
            lists.handle,
            *map(address, (plan.queries, keys, plan.lists, plan.offsets, plan.askers)),
            (c_int64 * 4)(*bounds),
            plan.lists.shape[1],
            plan.first,
            plan.queries.shape[1],
            DTYPES[dtype],
        )

    def ask_first(self, queries: slice) -> None:
        """The lists that these queries ask first."""
        bound = ctypes.byref(self._bound)
        library().rc_probe_first(bound, self._best.reference, queries.start, queries.stop)

    def ask(self, lists: slice) -> None:
        """All that ask these lists."""
        library().rc_probe(ctypes.byref(self._bound), self._best.reference, lists.start, lists.stop)
