"""Codes of large keys: a bit for each dimension, from which products are estimated before any key is read.

What a search then multiplies are the keys that may be among its best, given how far estimates were off for
live queries lately. The kernels are in `native/codes.cpp`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from functools import cache
from random import Random

import numpy as np
from numpy.typing import NDArray

from recollect_server.domain import work
from recollect_server.domain.arrays import Float32, Int64, Raw
from recollect_server.domain.spec import Dtype
from recollect_server.domain.steps import Steps
from recollect_server.engine import kernels
from recollect_server.engine.kernel_lists import Lists
from recollect_server.engine.kernels import address, library
from recollect_server.engine.ranges import placed
from recollect_server.engine.tails import bin_of
from recollect_server.engine.zeroing import zero

DIM_MIN = 256
"""Smaller keys are read as fast as their codes (measured)."""

ROUNDS = 4
"""Of signs and Hadamard matrices: what makes the rotation."""

ESTIMATE = 580
"""Of estimating one product, in multiply-adds, and so much more for each 8 dimensions."""

QUERY = 60
"""Of an element of a query that is turned and cut into bits."""

FETCHED = 6
"""An element of a key that is read from anywhere and multiplied with one query."""

LINE = 8
"""Words of a line of the cache."""

STEP, STEPS = 0.05, 80
"""How exactly margins are learnt, and their range. An estimate is off by 0.6 as a rule."""

AT_FIRST = 1.5
"""A margin before anything was learnt: two and a half times as much."""

KEPT = 0.8
"""How much earlier samples still count when new ones come."""

MOVED_TOGETHER = 4096
"""Entries whose codes move in one step."""

FEWER = 0.25
"""Of what the asked recall leaves to chance, so much is left to estimates."""


class _Codes(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("rows", "signs", "centroids", "keys")),
        ("stride", c_int64),
        *((name, c_int32) for name in ("dim", "dtype", "rounds")),
    )


class _Probe(ctypes.Structure):
    _fields_ = (
        ("codes", _Codes),
        *((name, c_void_p) for name in ("lists", "queries", "chosen", "multiplied")),
        ("live", c_int64 * 4),
        *((name, c_int64) for name in ("first", "last")),
        ("words", c_int32),
        ("margin", c_float),
    )


class Margin:
    """How far estimates may be off, in factors of codes times norms of queries: learnt from true hits.

    Attributes:
        far: Beyond what was found with so much, nothing is looked for.
    """

    def __init__(self) -> None:
        self.far = AT_FIRST
        self._needed = np.zeros(STEPS + 1, dtype=np.float32)

    @property
    def bytes(self) -> int:
        """What it takes."""
        return self._needed.nbytes

    def learn(self, needed: Float32) -> None:
        """Takes the margins with which true hits are found."""
        steps = np.ceil(needed / STEP).clip(0, STEPS).astype(np.int64)
        self._needed += np.bincount(steps, minlength=STEPS + 1)

    def settle(self, wanted: float) -> None:
        """Goes far enough to find the share of hits that is wanted."""
        if self._needed.any():
            self.far = bin_of(self._needed, wanted) * STEP

    def fade(self) -> None:
        """Lets what was learnt count for less beside what comes."""
        self._needed *= KEPT


class Codes:
    """Of the entries of one head that are in lists.

    Args:
        centroids: [L, D], of the lists.
        slots: Of the buffer.
    """

    def __init__(self, centroids: Float32, slots: int) -> None:
        self._centroids = centroids
        self._rows = _rows(slots, centroids.shape[1])
        self._signs = signs_of(centroids.shape[1])
        self._margins: dict[int, Margin] = {}  # of top_k = 1, 2, 4, ...
        self._multiplied = 0.0  # keys that a query is multiplied with, on average

    @property
    def bytes(self) -> int:
        """What they take."""
        return self._rows.nbytes + sum(margin.bytes for margin in self._margins.values())

    def clear(self) -> None:
        """Zeroes what was made of keys."""
        zero(self._rows)

    def moving(self, order: Int64 | None, slots: int, *, head: int) -> Steps[None]:
        """Follows entries of slots `order` (None: of all) to those from `head` on, in a buffer of `slots`."""
        rows, before = _rows(slots, self._centroids.shape[1]), self._rows
        entries = len(before) if order is None else order.size
        for part, place in placed(entries, slots, head=head, most=MOVED_TOGETHER):
            size = part.stop - part.start
            rows[place : place + size] = before[part if order is None else order[part]]
            yield work.moved_to_new(rows[place : place + size].nbytes)
        zero(self._rows)
        self._rows = rows

    def put(self, first_slot: int, assigned: Int64, keys: Raw, dtype: Dtype) -> None:
        """Codes of keys [slots, D] from a slot on, which are put into lists `assigned` [n]; none for -1."""
        made = self._struct(keys, dtype)
        library().rc_codes_put(ctypes.byref(made), first_slot, assigned.size, address(assigned))

    def sums(self, queries: Float32, slots: Int64) -> tuple[Float32, Float32]:
        """What is known of queries [N, D] and slots [N, K]: sums S and factors f, [N, K].

        q.k is estimated as q.c + f S, where c is the centroid of the slot's list. Both are 0 for -1.
        """
        sums, factors = np.empty(slots.shape, dtype=np.float32), np.empty(slots.shape, dtype=np.float32)
        made = self._struct(None, Dtype.FLOAT32)
        queries, slots = np.ascontiguousarray(queries), np.ascontiguousarray(slots)
        library().rc_codes_sums(
            ctypes.byref(made),
            address(queries),
            *slots.shape[:1],
            address(slots),
            slots.shape[1],
            address(sums),
            address(factors),
        )
        return sums, factors

    def ask(
        self,
        best: kernels.Best,
        queries: Float32,
        keys: Raw,
        part: slice,
        *,
        dtype: Dtype,
        live: Sequence[slice],
        chosen: NDArray[np.uint32],
        lists: Lists,
    ) -> None:
        """Takes the best entries of the lists that some queries chose into `best`.

        Args:
            best: Of N queries.
            queries: [N, D], contiguous.
            keys: [slots, D] of one head.
            part: Which queries.
            dtype: What the bits of keys mean.
            live: At most two slices of slots; what is in none of them is left out.
            chosen: Lists [N, words] of each query, as bits.
            lists: Their slots.
        """
        multiplied = np.zeros(len(queries), dtype=np.int64)
        bounds = [bound for some in live for bound in (some.start, some.stop)]
        bound = _Probe(
            self._struct(keys, dtype),
            lists.handle,
            address(queries),
            address(chosen),
            address(multiplied),
            (c_int64 * 4)(*bounds),
            part.start,
            part.stop,
            chosen.shape[1],
            self._margin_of(best.top_k),
        )
        library().rc_codes_probe(ctypes.byref(bound), best.reference)
        self._multiplied += 0.2 * (multiplied[part].mean() - self._multiplied)

    def work(self, entries: float) -> int:
        """What one query takes, in multiply-adds, of which so many entries are in its lists."""
        dim = self._centroids.shape[1]
        return int(QUERY * dim + entries * (ESTIMATE + dim // 8) + self._multiplied * FETCHED * dim)

    def learn(self, queries: Float32, hits: Int64, scores: Float32, products: Float32) -> None:
        """Learns from what exact search found: how far estimates of it were below the worst of it.

        Args:
            queries: [N, D].
            hits: Slots [N, K], the best first; -1 for none, and for what is in no list.
            scores: [N, K], of hits; -inf where there is none.
            products: Of queries with the centroids of the lists of hits, [N, K].
        """
        sums, factors = self.sums(queries, hits)
        unit = factors * np.linalg.norm(queries, axis=1)[:, None]
        estimates = products + factors * sums
        # Of a smaller top_k the hits are the first of these, and a candidate has to be better.
        for asked in (2**i for i in range(hits.shape[1].bit_length())):
            there = (hits[:, :asked] >= 0) & (unit[:, :asked] > 0)
            short = scores[:, asked - 1, None] - estimates[:, :asked]
            needed = short[there] / unit[:, :asked][there]
            self._margins.setdefault(asked, Margin()).learn(needed[np.isfinite(needed)])

    def settle(self, recall: float) -> float:
        """Takes the margins that what was learnt says; returns the share of hits that they let through."""
        wanted = 1 - FEWER * (1 - recall)
        for margin in self._margins.values():
            margin.settle(wanted)
        return wanted

    def fade(self) -> None:
        """Lets what was learnt count for less beside what comes."""
        for margin in self._margins.values():
            margin.fade()

    def _margin_of(self, top_k: int) -> float:
        learnt = [asked for asked in self._margins if asked <= top_k]
        return self._margins[max(learnt)].far if learnt else AT_FIRST

    def _struct(self, keys: Raw | None, dtype: Dtype) -> _Codes:
        dim = self._centroids.shape[1]
        return _Codes(
            address(self._rows),
            address(self._signs),
            address(self._centroids),
            None if keys is None else address(keys),
            self._rows.shape[1],
            dim,
            kernels.DTYPES[dtype],
            len(self._signs),
        )


@cache
def signs_of(dim: int) -> Float32:
    """The signs [rounds, D] of a rotation: the same each time, so that runs are comparable."""
    drawn = np.frombuffer(Random(dim).randbytes(-(-ROUNDS * dim // 8)), dtype=np.uint8)
    bits = np.unpackbits(drawn, count=ROUNDS * dim).reshape(ROUNDS, dim)
    return 2 * bits.astype(np.float32) - 1


def _stride(dim: int) -> int:
    """Words of a code: its factor, and its bits; whole lines of the cache, where that is little more."""
    words, lines = 1 + -(-dim // 64), -(-(dim + 64) // (64 * LINE))
    return LINE * lines if 4 * LINE * lines <= 5 * words else words


def _rows(slots: int, dim: int) -> NDArray[np.uint64]:
    """Of zeroes, from the begin of a line on."""
    rows = np.zeros(slots * _stride(dim) + LINE, dtype=np.uint64)
    first = -address(rows) // 8 % LINE
    return rows[first : first + slots * _stride(dim)].reshape(slots, -1)
