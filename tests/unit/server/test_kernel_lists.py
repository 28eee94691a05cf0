"""The compiled kernels for inverted lists against NumPy, for each instruction set that this processor has."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from recollect_server.domain.arrays import DenseArray, Float32, from_float32
from recollect_server.domain.spec import Dtype
from recollect_server.engine import kernels
from recollect_server.engine.kernel_lists import Lists, Probing, multiply_centroids

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")


def normal(rng: np.random.Generator, *shape: int, dtype: Dtype = Dtype.FLOAT32) -> DenseArray:
    return from_float32(rng.standard_normal(shape).astype(np.float32), dtype)


@pytest.mark.parametrize("lists", [45, 70_000])
def test_lists_know_of_more_slots(lists: int) -> None:
    """Entries of a bank that has grown are in other lists than before, or new ones in one already."""
    rng = np.random.default_rng(0)
    held, assigned = Lists(lists, 300), rng.integers(-1, lists, size=300)
    held.put(0, assigned)
    held.extend(500)
    np.testing.assert_array_equal(held.of_slots(), np.r_[assigned, np.full(200, -1)])
    held.put(300, np.full(200, 7))
    np.testing.assert_array_equal(held.of_slots(), np.r_[assigned, np.full(200, 7)])
    assert held.sizes()[7] == 200 + (assigned == 7).sum()


class Case:
    """Keys in lists of random centroids, some of them written anew, and some in none."""

    slots, lists, dim = 3000, 45, 40
    live = (slice(2500, 3000), slice(0, 1500))

    def __init__(self, dtype: Dtype, count: int) -> None:
        rng = np.random.default_rng(10)
        self.dtype = dtype
        self.keys = normal(rng, self.slots, self.dim, dtype=dtype)
        self.q, self.centroids = (normal(rng, n, self.dim).float32() for n in (count, self.lists))
        self.radii = np.abs(normal(rng, 64).float32()) + np.float32(0.1)
        self.held, self.assigned = (
            Lists(self.lists, self.slots),
            rng.integers(-1, self.lists, size=self.slots),
        )
        self.held.put(0, self.assigned[:2000])
        self.held.put(2000, self.assigned[2000:])
        again = rng.integers(-1, self.lists, size=500)
        self.held.put(700, again)
        self.assigned[700:1200] = again
        is_live = np.zeros(self.slots, bool)
        for part in self.live:
            is_live[part] = True
        self.reachable = np.flatnonzero(is_live & (self.assigned >= 0))
        self.real = self.q.astype(np.float64) @ self.keys.float32().astype(np.float64).T

    def probing(self, best: kernels.Best, *, nearest: int, reach: float) -> Probing:
        return Probing(
            self.held,
            best,
            queries=self.q,
            centroids=self.centroids,
            radii=self.radii,
            keys=self.keys.raw,
            dtype=self.dtype,
            live=self.live,
            nearest=nearest,
            reach=reach,
        )

    def reaches(self, scores: Float32) -> NDArray[np.float64]:
        """How far each query must reach [N, L] to find what is better than a score [N]."""
        q, centroids = self.q.astype(np.float64), self.centroids.astype(np.float64)
        far = (scores[:, None] - q @ centroids.T) / np.linalg.norm(q, axis=1)[:, None]
        reaches: NDArray[np.float64] = far / self.radii[: self.lists]
        return reaches


def asked(probing: Probing, count: int) -> int:
    """All of it, in parts; how many lists were chosen."""
    for queries in (slice(0, count // 2), slice(count // 2, count)):
        probing.ask_nearest(queries)
    chosen = probing.order()
    for part in (slice(0, 7), slice(7, Case.lists)):
        probing.ask(part)
    return chosen


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("count", [1, 3, 4, 60])
@pytest.mark.parametrize(("top_k", "nearest"), [(20, 2), (1, 1), (150, 8), (20, 45)])
@pytest.mark.parametrize("reach", [np.inf, 2.0, 0.0])
def test_probing(
    isa: str, threads: int, dtype: Dtype, count: int, top_k: int, nearest: int, reach: float
) -> None:
    """A search in lists finds what is in none, or not live; or misses some of what is near enough."""
    case = Case(dtype, count)
    assert case.held.sizes().tolist() == np.bincount(case.assigned[case.assigned >= 0], minlength=45).tolist()
    np.testing.assert_array_equal(case.held.of_slots(), case.assigned)
    best = kernels.Best(count, top_k)
    asked(case.probing(best, nearest=nearest, reach=reach), count)
    scores, found = best.ordered()
    assert np.isin(found, case.reachable).all()
    assert (np.diff(np.sort(found, axis=1), axis=1) > 0).all(), "the same slot twice"
    assert (np.diff(scores, axis=1) <= 0).all(), "not in order"
    np.testing.assert_allclose(scores, np.take_along_axis(case.real, found, axis=1), atol=1e-4)
    near = case.reaches(scores[:, -1] + np.float32(1e-3)) < reach
    for n in range(count):
        reached = case.reachable[near[n, case.assigned[case.reachable]]]
        wanted = np.sort(case.real[n, reached])[::-1][:top_k]
        assert (scores[n, : len(wanted)] >= wanted - 1e-4).all()


@pytest.mark.parametrize("reach", [0.0, 0.5])
def test_lists_out_of_reach_are_left_out(isa: str, threads: int, reach: float) -> None:
    """A search looks into lists in which there can be nothing, and takes as long as an exact one."""
    case = Case(Dtype.FLOAT32, 60)
    best = kernels.Best(60, 20)
    probing = case.probing(best, nearest=4, reach=reach)
    probing.ask_nearest(slice(0, 60))
    far = case.reaches(best.thresholds)
    bits = np.unpackbits(probing.chosen.view(np.uint8), axis=1, bitorder="little")
    assert not bits[:, case.lists :].any()
    chosen = bits[:, : case.lists] == 1
    assert not (chosen & (far > reach + 1e-4)).any()
    assert probing.order() == chosen.sum()
    askers = np.unpackbits(probing.askers.view(np.uint8), axis=1, bitorder="little")
    np.testing.assert_array_equal(askers[: case.lists, :60], chosen.T)
    assert not askers[case.lists :].any()
    np.testing.assert_array_equal(probing.counts, chosen.sum(axis=0))
    # Those that are within reach were chosen, or asked at once because they are the nearest.
    left = (far < reach - 1e-4) & ~chosen
    assert left.sum(axis=1).max() <= 4 + 2


@pytest.mark.parametrize("nearest", [1, 6, 40])
def test_centroids_that_are_equal(isa: str, nearest: int) -> None:
    """Where the nearest lists cannot be told apart none is asked, or some are asked twice."""
    case = Case(Dtype.FLOAT32, 9)
    case.centroids[:40] = case.centroids[0]
    best = kernels.Best(9, 30)
    asked(case.probing(best, nearest=nearest, reach=np.inf), 9)
    wanted = -np.sort(-case.real[:, case.reachable], axis=1)[:, :30]
    np.testing.assert_allclose(best.ordered()[0], wanted, atol=1e-4)


def test_fewer_entries_than_asked_for(isa: str) -> None:
    """Lists that hold little end the search before all of it is found."""
    case = Case(Dtype.FLOAT32, 5)
    best = kernels.Best(5, 2000)
    asked(case.probing(best, nearest=1, reach=0.0), 5)
    found = best.ordered()[1]
    for row in found:
        assert np.sort(row[row >= 0]).tolist() == case.reachable.tolist()


def test_lists_that_are_written_round_and_round() -> None:
    """A slot that is overwritten stays in its list too: it is found twice, and lists only grow."""
    rng = np.random.default_rng(11)
    slots, lists = 200, 6
    held, assigned = Lists(lists, slots), np.full(slots, -1)
    for _ in range(300):
        first = int(rng.integers(slots))
        size = int(rng.integers(1, slots - first + 1))
        new = rng.integers(-1, lists, size=size)
        held.put(first, new)
        assigned[first : first + size] = new
        np.testing.assert_array_equal(held.of_slots(), assigned)
        assert held.sizes().tolist() == np.bincount(assigned[assigned >= 0], minlength=lists).tolist()
    assert held.bytes < 10_000


@pytest.mark.parametrize("lists", [1, 0xFFFE, 0xFFFF, 0x10000, 70_000])
def test_slots_know_their_lists(lists: int) -> None:
    """Where there are more lists than two bytes can name, a slot is taken out of another one than its own."""
    rng, slots = np.random.default_rng(lists), 5000
    held, assigned = Lists(lists, slots), np.full(slots, -1)
    for _ in range(3):
        first = int(rng.integers(slots))
        part = slice(first, first + int(rng.integers(slots - first)))
        assigned[part] = rng.integers(-1, lists, size=part.stop - part.start)
        assigned[part][:2] = [lists - 1, -1][: part.stop - part.start]
        held.put(part.start, assigned[part])
        np.testing.assert_array_equal(held.of_slots(), assigned)
        np.testing.assert_array_equal(held.sizes(), np.bincount(assigned[assigned >= 0], minlength=lists))


@pytest.mark.parametrize("dim", [1, 7, 64, 128, 201])
@pytest.mark.parametrize("lists", [1, 31, 32, 70])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 17])
def test_products_with_all_centroids(isa: str, count: int, lists: int, dim: int) -> None:
    """How far queries reach is learnt from wrong products, or from those of another query."""
    rng = np.random.default_rng(0)
    queries, centroids = normal(rng, count, dim).float32(), normal(rng, lists, dim).float32()
    real = queries.astype(np.float64) @ centroids.astype(np.float64).T
    np.testing.assert_allclose(multiply_centroids(queries, centroids), real, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1, 8, 31, 32, 33, 512])
@pytest.mark.parametrize("lists", [1, 31, 32, 33, 1024])
def test_who_asks_a_list_is_who_chose_it(count: int, lists: int) -> None:
    """Where few chose, or many did, a list is looked into for another query, or not at all."""
    rng = np.random.default_rng(count)
    for share in (0.0, 0.02, 0.3, 1.0):
        chosen = rng.random((count, lists)) < share
        padded = np.zeros((count, -(-lists // 32) * 32), np.uint8)
        padded[:, :lists] = chosen
        bits = np.packbits(padded, axis=1, bitorder="little").view(np.uint32)
        askers = np.full((padded.shape[1], -(-count // 32)), 0xFFFFFFFF, np.uint32)
        counts = np.full(lists, -1, np.int32)
        kernels.library().rc_askers(bits.ctypes.data, count, lists, askers.ctypes.data, counts.ctypes.data)
        found = np.unpackbits(askers.view(np.uint8), axis=1, bitorder="little")
        np.testing.assert_array_equal(found[:lists, :count], chosen.T)
        assert found.sum() == chosen.sum()
        np.testing.assert_array_equal(counts, chosen.sum(axis=0))
