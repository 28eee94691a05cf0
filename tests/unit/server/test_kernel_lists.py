"""The compiled kernels for inverted lists against NumPy, for each instruction set that this processor has."""

from __future__ import annotations

import numpy as np
import pytest

from recollect_server.domain.arrays import DenseArray, Float32, from_float32
from recollect_server.domain.spec import Dtype
from recollect_server.engine import kernels
from recollect_server.engine.kernel_lists import Int32, Lists, Plan

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")


def normal(rng: np.random.Generator, *shape: int, dtype: Dtype = Dtype.FLOAT32) -> DenseArray:
    return from_float32(rng.standard_normal(shape).astype(np.float32), dtype)


def nearest(q: Float32, centroids: Float32, probes: int, *, first: int = 2) -> Int32:
    return Plan(q, centroids, probes, first=first).lists


@pytest.mark.parametrize("lists", [1, 5, 64, 257])
@pytest.mark.parametrize("count", [1, 5, 130])
def test_nearest(isa: str, threads: int, lists: int, count: int) -> None:
    """The lists looked into are not those that are nearest, or are fewer than asked for."""
    rng = np.random.default_rng(lists)
    q, centroids = normal(rng, count, 30).float32(), normal(rng, lists, 30).float32()
    products = q.astype(np.float64) @ centroids.T.astype(np.float64)
    for probes in sorted({1, min(3, lists), max(1, lists // 2), lists}):
        for asked, row in zip(products, nearest(q, centroids, probes), strict=True):
            chosen = row[row >= 0]
            assert len(set(chosen)) == len(chosen) >= probes
            assert len(chosen) <= probes + probes // 8 + 1
            left_out = np.delete(asked, chosen)
            assert asked[chosen].min() >= left_out.max(initial=-np.inf) - 1e-4


@pytest.mark.parametrize("probes", [3, 40, 128])
@pytest.mark.parametrize("first", [1, 2, 9])
def test_the_nearest_of_all_come_first(isa: str, threads: int, probes: int, first: int) -> None:
    """Lists that a query asks first, to learn how good a candidate has to be, are some of the others."""
    rng = np.random.default_rng(probes)
    q, centroids = normal(rng, 70, 24).float32(), normal(rng, 128, 24).float32()
    plan = Plan(q, centroids, probes, first=first)
    products = q.astype(np.float64) @ centroids.T.astype(np.float64)
    for asked, row in zip(products, plan.lists, strict=True):
        chosen = row[row >= 0]
        wanted = np.sort(asked)[::-1][: plan.first][: len(chosen)]
        np.testing.assert_allclose(np.sort(asked[chosen[: plan.first]])[::-1], wanted, atol=1e-4)


def test_nearest_of_equal_centroids(isa: str) -> None:
    """Where centroids are equal none is chosen, or too many for the room there is."""
    q, centroids = np.ones((3, 8), np.float32), np.ones((40, 8), np.float32)
    for probes in (4, 20):
        for row in nearest(q, centroids, probes):
            chosen = row[row >= 0].tolist()
            assert len(set(chosen)) == len(chosen) >= probes


@pytest.mark.parametrize("first", [1, 3, 19])
def test_plan(first: int) -> None:
    """A list is searched for queries that did not ask for it, or again for those that asked it first."""
    rng = np.random.default_rng(9)
    q, centroids = normal(rng, 50, 16).float32(), normal(rng, 20, 16).float32()
    plan = Plan(q, centroids, 6, first=first)
    others = plan.lists[:, plan.first :]
    for number in range(20):
        wanted = np.flatnonzero((others == number).any(axis=1)).tolist()
        assert plan.askers[plan.offsets[number] : plan.offsets[number + 1]].tolist() == wanted


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("count", [1, 3, 4, 60])
@pytest.mark.parametrize(("top_k", "first"), [(20, 2), (1, 1), (150, 8)])
def test_probe(isa: str, threads: int, dtype: Dtype, count: int, top_k: int, first: int) -> None:
    """A search in lists finds what is in others, in none, or not live; or misses some."""
    rng = np.random.default_rng(10)
    slots, lists, dim = 3000, 24, 40
    keys, q = normal(rng, slots, dim, dtype=dtype), normal(rng, count, dim).float32()
    held, assigned = Lists(lists, slots), rng.integers(-1, lists, size=slots)
    held.put(0, assigned[:2000])
    held.put(2000, assigned[2000:])
    again = rng.integers(-1, lists, size=500)  # written anew
    held.put(700, again)
    assigned[700:1200] = again
    assert held.sizes().tolist() == np.bincount(assigned[assigned >= 0], minlength=lists).tolist()
    np.testing.assert_array_equal(held.of_slots(), assigned)
    plan = Plan(q, normal(rng, lists, dim).float32(), 5, first=first)
    live = [slice(2500, 3000), slice(0, 1500)]
    best = kernels.Best(count, top_k)
    probing = held.probe(best, plan, keys.raw, dtype=dtype, live=live)
    for queries in (slice(0, count // 2), slice(count // 2, count)):
        probing.ask_first(queries)
    for part in (slice(0, 7), slice(7, lists)):
        probing.ask(part)
    scores, found = best.ordered()
    is_live = np.zeros(slots, bool)
    for part in live:
        is_live[part] = True
    real = q.astype(np.float64) @ keys.float32().astype(np.float64).T
    for n in range(count):
        asked = plan.lists[n][plan.lists[n] >= 0]
        reachable = np.flatnonzero(np.isin(assigned, asked) & is_live)
        wanted = np.sort(real[n, reachable])[::-1][:top_k]
        assert np.isin(found[n], reachable).all()
        np.testing.assert_allclose(scores[n], wanted, atol=1e-4)
        np.testing.assert_allclose(real[n, found[n]], wanted, atol=1e-4)


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


@pytest.mark.parametrize("probes", [2, 5, 20])
def test_nearest_where_many_are_equal(isa: str, probes: int) -> None:
    """Of many equal centroids, as of empty keys, the first take the places of those that are nearer."""
    rng = np.random.default_rng(12)
    q, centroids = normal(rng, 9, 16).float32(), normal(rng, 128, 16).float32()
    centroids[:100] = 0
    for asked, row in zip(q @ centroids.T, nearest(q, centroids, probes), strict=True):
        nearer = np.flatnonzero(asked > 0)
        best = nearer[np.argsort(-asked[nearer])][:probes]
        assert np.isin(best, row).all()


@pytest.mark.parametrize("lists", [1, 0xFFFE, 0xFFFF, 0x10000, 70_000])
def test_slots_know_their_lists(lists: int) -> None:
    """Where there are more lists than two bytes can name, a slot is taken out of another one than its own."""
    rng, slots = np.random.default_rng(lists), 5000
    held, assigned = kernels.Lists(lists, slots), np.full(slots, -1)
    for _ in range(3):
        first = int(rng.integers(slots))
        part = slice(first, first + int(rng.integers(slots - first)))
        assigned[part] = rng.integers(-1, lists, size=part.stop - part.start)
        assigned[part][:2] = [lists - 1, -1][: part.stop - part.start]
        held.put(part.start, assigned[part])
        np.testing.assert_array_equal(held.of_slots(), assigned)
        np.testing.assert_array_equal(held.sizes(), np.bincount(assigned[assigned >= 0], minlength=lists))
