"""Exact search on the CPU with FAISS, over slices of a buffer and without a copy of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import faiss
import numpy as np

from recollect_server.domain import work
from recollect_server.domain.arrays import Float32, Int64
from recollect_server.domain.steps import Steps
from recollect_server.engine.tiles import queries_of_tile, rows_of_tile

SCALAR_QUERIES_MAX = 10
"""Up to so many queries a scan by scalar product is faster than a matrix product (measured)."""

QUERY_BLOCK, DATABASE_BLOCK = 256, 4096
"""Tiles of the matrix product; FAISS's own defaults reach half the speed at 512 queries."""

WHOLE_ROWS_MIN = 32_768
"""`faiss.knn` begins with empty heaps, which costs little only if many keys follow. Smaller blocks go through
a product and heaps that last: half the time at 4,096 keys (measured)."""

PRODUCT_BYTES_MAX = 4 * 1024 * 1024
"""Scores of one tile."""

_faiss: Any = faiss
_settings: Any = faiss.cvar

KeysOf = Callable[[slice], Float32]
"""The keys [n, D] of a slice of slots, contiguous."""


def use_threads(threads: int) -> None:
    """How many threads one search may use."""
    _faiss.omp_set_num_threads(threads)


class Searcher:
    """Searches for one thread, which lends its scratch memory to one tile at a time."""

    def __init__(self) -> None:
        self._scratch = np.empty(0, dtype=np.float32)
        # FAISS exposes its matrix product, with the threads that its searches use, only as a linear map.
        self._map: Any = _faiss.LinearTransform(1, 1, False)
        self._map.is_trained = True
        self._blocks = 0  # numbers blocks of keys
        self._loaded = 0

    def top_k_of(
        self, queries: Float32, live: Sequence[slice], keys_of: KeysOf, top_k: int, *, rows_max: int
    ) -> Steps[tuple[Float32, Int64]]:
        """The top_k live rows by inner product.

        Args:
            queries: [N, D], contiguous.
            live: Slices of slots, none empty.
            keys_of: Asked for at most rows_max slots at a time.
            top_k: K.
            rows_max: See above.

        Returns:
            Scores float32 [N, K], descending, -inf where there are fewer rows; slots int64 [N, K], -1 there.
        """
        count, dim = queries.shape
        left = yield 0
        if len(live) == 1 and live[0].stop - live[0].start <= rows_max:
            size = work.searched(count, live[0].stop - live[0].start, dim)
            if size <= left:
                found = _padded(_knn(queries, keys_of(live[0]), top_k, first_slot=live[0].start), top_k)
                yield size
                return found
        best = _Best(count, top_k)
        for segment in live:
            first = segment.start
            while first < segment.stop:
                rows = min(rows_max, segment.stop - first)
                rows = self._rows(rows_of_tile(left, queries=count, rows=rows, dim=dim), count)
                keys, done = keys_of(slice(first, first + rows)), 0
                self._blocks = block = self._blocks + 1
                while done < count:
                    most = self._queries_max(rows, count - done)
                    size = queries_of_tile(left, queries=most, rows=rows, dim=dim)
                    part = slice(done, done + size)
                    self._take(best, queries, part, keys=keys, first_slot=first, block=block)
                    done += size
                    left = yield work.searched(size, rows, dim)
                first += rows
        return best.descending()

    def _rows(self, rows: int, queries: int) -> int:
        """Not so many that a small tile needs more scratch memory than there is."""
        if rows >= WHOLE_ROWS_MIN or queries <= SCALAR_QUERIES_MAX:
            return rows
        return min(rows, PRODUCT_BYTES_MAX // 4 // min(queries, QUERY_BLOCK))

    def _queries_max(self, rows: int, queries: int) -> int:
        """As above, for a block that has so many rows."""
        if rows >= WHOLE_ROWS_MIN or queries <= SCALAR_QUERIES_MAX:
            return queries
        return min(queries, max(1, PRODUCT_BYTES_MAX // 4 // rows))

    def _take(
        self, best: _Best, queries: Float32, part: slice, *, keys: Float32, first_slot: int, block: int
    ) -> None:
        queries, first_query = queries[part], part.start
        cells = len(queries) * len(keys)
        if len(queries) <= SCALAR_QUERIES_MAX or len(keys) >= WHOLE_ROWS_MIN:
            found = _knn(queries, keys, best.top_k, first_slot=first_slot)
            best.take_found(*found, first_query=first_query)
            return
        if self._loaded != block:  # between two steps another search may have loaded its own
            self._map.d_out, self._map.d_in = keys.shape
            _faiss.copy_array_to_vector(keys.reshape(-1), self._map.A)
            self._loaded = block
        if self._scratch.size < cells:
            self._scratch = np.empty(cells, dtype=np.float32)
        products = self._scratch[:cells].reshape(len(queries), len(keys))
        self._map.apply_noalloc(len(queries), _faiss.swig_ptr(queries), _faiss.swig_ptr(products))
        best.take_products(products, first_query=first_query, first_slot=first_slot)


class _Best:
    """The best rows so far of each query, in FAISS's heaps."""

    def __init__(self, queries: int, top_k: int) -> None:
        self.top_k = top_k
        self._scores = np.empty((queries, top_k), dtype=np.float32)
        self._slots = np.empty((queries, top_k), dtype=np.int64)
        self._heaps: Any = _faiss.float_minheap_array_t()
        self._heaps.nh, self._heaps.k = queries, top_k
        self._heaps.val, self._heaps.ids = _faiss.swig_ptr(self._scores), _faiss.swig_ptr(self._slots)
        self._heaps.heapify()

    def take_products(self, products: Float32, *, first_query: int, first_slot: int) -> None:
        """Scores [n, rows] of queries from `first_query` on, and of slots from `first_slot` on."""
        queries, rows = products.shape
        self._heaps.addn(rows, _faiss.swig_ptr(products), first_slot, first_query, queries)

    def take_found(self, scores: Float32, slots: Int64, *, first_query: int) -> None:
        """Scores and slots [n, k] of queries from `first_query` on; -inf is not taken."""
        queries, found = scores.shape
        pointers = _faiss.swig_ptr(scores), _faiss.swig_ptr(slots)
        self._heaps.addn_with_ids(found, *pointers, found, first_query, queries)

    def descending(self) -> tuple[Float32, Int64]:
        """Scores and slots [N, K]; nothing can be taken after."""
        self._heaps.reorder()
        self._scores[self._slots < 0] = -np.inf
        return self._scores, self._slots


def _knn(queries: Float32, keys: Float32, top_k: int, *, first_slot: int) -> tuple[Float32, Int64]:
    # Since 1.15 the threshold is compared with queries x dimensions; 1 means always the product.
    few = len(queries) <= SCALAR_QUERIES_MAX
    _settings.distance_compute_blas_threshold = queries.size + 1 if few else 1
    _settings.distance_compute_blas_query_bs = QUERY_BLOCK
    _settings.distance_compute_blas_database_bs = DATABASE_BLOCK
    # k beyond the rows would come back padded: ask for what there is.
    scores, rows = _faiss.knn(queries, keys, min(top_k, len(keys)), metric=_faiss.METRIC_INNER_PRODUCT)
    # FAISS takes a row whose score underflows its range for one that is not there: keep that mark.
    missing = rows < 0
    if missing.any():
        scores[missing] = -np.inf
    rows += first_slot
    rows[missing] = -1
    return scores, rows


def _padded(found: tuple[Float32, Int64], top_k: int) -> tuple[Float32, Int64]:
    missing = top_k - found[0].shape[1]
    if not missing:
        return found
    padding = ((0, 0), (0, missing))
    scores = np.pad(found[0], padding, constant_values=-np.inf)
    return scores, np.pad(found[1], padding, constant_values=-1)
