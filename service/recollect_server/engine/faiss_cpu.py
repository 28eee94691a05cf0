"""Exact search on the CPU with FAISS, over slices of a buffer and without a copy of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import faiss
import numpy as np

from recollect_server.domain.arrays import Float32, Int64

SCALAR_QUERIES_MAX = 10
"""Up to so many queries a scan by scalar product is faster than a matrix product (findings, FAISS)."""

QUERY_BLOCK, DATABASE_BLOCK = 256, 4096
"""Tiles of the matrix product; FAISS's own defaults reach half the speed at 512 queries."""

_faiss: Any = faiss
_settings: Any = faiss.cvar


def top_k_of(queries: Float32, blocks: Iterable[tuple[int, Float32]], top_k: int) -> tuple[Float32, Int64]:
    """The top_k rows of all blocks together by inner product.

    Args:
        queries: [N, D], contiguous.
        blocks: Pairs of the first slot and the keys [n, D] from that slot on, n >= 1.
        top_k: K.

    Returns:
        Scores float32 [N, K], descending, -inf where there are fewer rows; slots int64 [N, K], -1 there.
    """
    found = [_knn(queries, keys, top_k, first_slot=first) for first, keys in blocks]
    scores = np.full((len(queries), top_k), -np.inf, dtype=np.float32)
    slots = np.full((len(queries), top_k), -1, dtype=np.int64)
    if found:
        best_scores, best_slots = found[0] if len(found) == 1 else _merge(found, top_k)
        scores[:, : best_scores.shape[1]] = best_scores
        slots[:, : best_slots.shape[1]] = best_slots
    return scores, slots


def use_threads(threads: int) -> None:
    """How many threads one search may use."""
    _faiss.omp_set_num_threads(threads)


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
    return scores, np.where(missing, np.int64(-1), rows + first_slot)


def _merge(found: list[tuple[Float32, Int64]], top_k: int) -> tuple[Float32, Int64]:
    scores = np.concatenate([s for s, _ in found], axis=1)
    slots = np.concatenate([s for _, s in found], axis=1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(slots, order, axis=1)
