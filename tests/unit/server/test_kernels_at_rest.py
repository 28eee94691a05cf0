"""What the kernels' threads keep to calculate in, and give back when the process rests."""

from __future__ import annotations

import ctypes
import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from recollect_server.domain.arrays import DenseArray
from recollect_server.domain.spec import Dtype
from recollect_server.engine import kernels
from recollect_server.engine.kernel_lists import multiply_centroids
from tests.unit.server.scanned_keys import check, normal, scanned

pytestmark = [
    pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled"),
    pytest.mark.usefixtures("isa", "threads"),
]

HEADS, QUERIES, ROWS, DIM, TOP_K = 2, 40, 3000, 64, 8
EACH = 65_536 * 4
"""Bytes of keys as a thread lays them out for several queries."""

MANY_ROWS = 60_000
"""So many that a matrix unit, which lays out fewer keys at once, has as much beside them to remember."""


NAMES = (
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
)


class Mallinfo2(ctypes.Structure):
    """See mallinfo2(3)."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in NAMES)


def drawn(rows: int) -> tuple[DenseArray, DenseArray]:
    """Queries [heads, n, D], which have to be widened, and keys [heads, rows, D]."""
    rng = np.random.default_rng(0)
    return normal(rng, HEADS, QUERIES, DIM, dtype=Dtype.FLOAT16), normal(rng, HEADS, rows, DIM)


def check_search(queries: DenseArray, keys: DenseArray) -> None:
    """Finds what NumPy finds."""
    parts = [slice(0, keys.shape[1])]
    check(scanned(queries, keys, TOP_K, parts=parts), queries, keys, parts=parts)


def in_use() -> int:
    """Bytes that this process has of its allocator."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    info = mallinfo2()
    return int(info.hblkhd + info.uordblks)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the allocator is not glibc's")
def test_what_threads_calculate_in_is_given_back() -> None:
    """A server at rest keeps what its largest search took, once for each thread."""
    queries, keys = drawn(MANY_ROWS)
    for _ in range(2):
        check_search(queries, keys)
        gc.collect()
        before = in_use()
        kernels.give_back()
        assert before - in_use() >= EACH


@contextmanager
def resting() -> Iterator[None]:
    """All is given back again and again meanwhile."""
    ended = threading.Event()

    def give_back() -> None:
        while not ended.is_set():
            kernels.give_back()

    thread = threading.Thread(target=give_back)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_nothing_is_given_back_under_a_search() -> None:
    """A server that comes to rest frees what a search that begins just then calculates in."""
    queries, keys = drawn(ROWS)
    with resting():
        for _ in range(50):
            check_search(queries, keys)


@pytest.mark.parametrize("dim", [DIM, 160], ids=["panels", "rows"])
def test_nothing_is_given_back_under_products_with_centroids(dim: int) -> None:
    """A server that comes to rest frees what upkeep calculates in: it crashes, or reads another's memory."""
    rng = np.random.default_rng(0)
    queries, centroids = normal(rng, 4, dim).float32(), normal(rng, MANY_ROWS, dim).float32()
    wanted = queries @ centroids.T
    with resting():
        for _ in range(20):
            np.testing.assert_allclose(multiply_centroids(queries, centroids), wanted, atol=1e-3)
