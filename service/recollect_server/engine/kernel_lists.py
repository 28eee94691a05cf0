"""The compiled kernels for inverted lists: which are nearest, and the best entries that are in them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p

import numpy as np
from numpy.typing import NDArray

from recollect_server.domain.arrays import Float32, Int64, Raw
from recollect_server.domain.spec import Dtype
from recollect_server.engine.kernels import DTYPES, Best, address, library

Int32 = NDArray[np.int32]


class _Probe(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("lists", "queries", "centroids", "radii", "keys")),
        *((name, c_void_p) for name in ("chosen", "askers", "counts")),
        ("live", c_int64 * 4),
        *((name, c_int32) for name in ("dim", "dtype", "nearest", "words", "query_words")),
        ("reach", c_float),
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

    def extend(self, slots: int) -> None:
        """There are so many slots now, more than there were; new ones are in no list."""
        self.slots = slots
        library().rc_lists_extend(self.handle, slots)

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


class Probing:
    """A search of some queries in lists, which may be done a little at a time.

    A query asks its nearest lists by itself, one after another, and so learns how good a candidate has to be,
    t. Of the others it chooses those with query . centroid + reach |query| radius > t; they are looked into
    list by list, for all queries that chose them.

    Args:
        lists: L of them.
        best: Of N queries; takes the best entries.
        queries: [N, D], contiguous.
        centroids: [L, D], contiguous.
        radii: [L, rounded up to 32], how far from its centroid a list's keys are; above 0.
        keys: [slots, D] of one head.
        dtype: What the bits of keys mean.
        live: At most two slices of slots; what is in none of them is left out.
        nearest: How many lists a query asks by itself, at least.
        reach: Infinite: all lists are chosen.

    Attributes:
        chosen: The lists that each query chose beside, as bits: uint32 [N, L / 32, rounded up].
        askers: The same the other way: the queries that chose each list, as bits, uint32 [L, N / 32], both
            rounded up, to 32 the first; once `order` has been called.
        counts: int32 [L], how many these are.
    """

    __slots__ = ("_best", "_bound", "_held", "_lists", "askers", "chosen", "counts")

    def __init__(
        self,
        lists: Lists,
        best: Best,
        *,
        queries: Float32,
        centroids: Float32,
        radii: Float32,
        keys: Raw,
        dtype: Dtype,
        live: Sequence[slice],
        nearest: int,
        reach: float,
    ) -> None:
        (count, dim), words = queries.shape, -(-lists.count // 32)
        query_words = -(-count // 32)
        self.chosen = np.zeros((count, words), dtype=np.uint32)
        self.askers = np.empty((32 * words, query_words), dtype=np.uint32)
        self.counts = np.empty(lists.count, dtype=np.int32)
        self._best, self._lists = best, lists
        self._held = (queries, centroids, radii, keys)  # for as long as there are pointers to them
        arrays = (queries, centroids, radii, keys, self.chosen, self.askers, self.counts)
        self._bound = _Probe(
            lists.handle,
            *map(address, arrays),
            (c_int64 * 4)(*(bound for part in live for bound in (part.start, part.stop))),
            dim,
            DTYPES[dtype],
            nearest,
            words,
            query_words,
            reach,
        )

    def ask_nearest(self, queries: slice) -> None:
        """The lists that are nearest to these queries; and chooses among the others."""
        bound = ctypes.byref(self._bound)
        library().rc_probe_nearest(bound, self._best.reference, queries.start, queries.stop)

    def order(self) -> int:
        """Puts what all queries chose into the order of lists; returns how many choices there are."""
        count, lists = len(self.chosen), self._lists.count
        library().rc_askers(address(self.chosen), count, lists, address(self.askers), address(self.counts))
        return int(self.counts.sum())

    def ask(self, lists: slice) -> None:
        """These lists, by all that chose them."""
        library().rc_probe(ctypes.byref(self._bound), self._best.reference, lists.start, lists.stop)


def multiply_centroids(queries: Float32, centroids: Float32) -> Float32:
    """Products [N, L] of queries [N, D] with centroids [L, D], both contiguous.

    On one thread. NumPy's BLAS takes several even for so few, and then waits until they have begun: for seven
    milliseconds (measured) where the cores have other work.
    """
    count, lists = len(queries), len(centroids)
    products = np.empty((count, lists), dtype=np.float32)
    dim = queries.shape[1]
    library().rc_multiply_centroids(
        address(queries), count, address(centroids), lists, dim, address(products)
    )
    return products
