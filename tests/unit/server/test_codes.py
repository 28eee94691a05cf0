"""Codes of large keys against NumPy in float64, for each instruction set that this processor has."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from recollect_server.domain.arrays import DenseArray, from_float32
from recollect_server.domain.spec import Dtype
from recollect_server.domain.steps import run_through
from recollect_server.engine import codes, kernels, upkeep
from recollect_server.engine.codes import Codes, Margin
from recollect_server.engine.kernel_lists import Lists
from tests.unit.server.filed_keys import filed, share, spread

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")

Float64 = NDArray[np.float64]
DIMS = (256, 300, 768, 1024)


def normal(rng: np.random.Generator, *shape: int, dtype: Dtype = Dtype.FLOAT32) -> DenseArray:
    return from_float32(rng.standard_normal(shape).astype(np.float32), dtype)


def turned(rows: Float64, dim: int) -> Float64:
    """Rows [N, D] by the rotation that codes use: signs and Hadamard matrices, in turns over both ends."""
    power = 1 << (dim.bit_length() - 1)
    hadamard = np.ones((1, 1))
    while len(hadamard) < power:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    hadamard /= math.sqrt(power)
    for number, signs in enumerate(codes.signs_of(dim).astype(np.float64)):
        rows = rows * signs
        part = slice(dim - power, dim) if number % 2 else slice(0, power)
        rows[:, part] = rows[:, part] @ hadamard
    return rows


class Case:
    """Keys of some lists, one of which is its centroid, and queries."""

    lists, slots = 7, 400

    def __init__(self, dim: int, dtype: Dtype = Dtype.FLOAT32, *, queries: int = 20) -> None:
        rng = np.random.default_rng(dim)
        self.dim, self.dtype = dim, dtype
        self.keys = normal(rng, self.slots, dim, dtype=dtype)
        self.centroids = normal(rng, self.lists, dim).float32()
        if dtype is Dtype.FLOAT32:
            self.keys.raw[5] = self.centroids[3]
        self.queries = normal(rng, queries, dim).float32()
        self.assigned = rng.integers(0, self.lists, self.slots)
        self.assigned[5] = 3
        self.codes = Codes(self.centroids, self.slots)
        self.codes.put(0, self.assigned[:100].copy(), self.keys.raw, dtype)
        self.codes.put(100, self.assigned[100:].copy(), self.keys.raw, dtype)

    def rests(self) -> Float64:
        """What keys are beyond their centroids, turned."""
        rest = self.keys.float32().astype(np.float64) - self.centroids[self.assigned].astype(np.float64)
        return turned(rest, self.dim)


def test_the_rotation_keeps_lengths() -> None:
    """Estimates are of other products than those of the keys."""
    rows = np.random.default_rng(0).standard_normal((30, 300))
    there = turned(rows.copy(), 300)
    np.testing.assert_allclose(there @ there.T, rows @ rows.T, atol=1e-9)


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("dim", DIMS)
def test_sums_and_factors(isa: str, dim: int, dtype: Dtype) -> None:
    """A code, its factor, or the planes of a query are wrong, in one instruction set or at the last word."""
    case = Case(dim, dtype)
    slots = np.tile(np.arange(case.slots), (len(case.queries), 1))
    slots[0, :3] = -1
    sums, factors = case.codes.sums(case.queries, slots)
    assert not sums[0, :3].any()
    assert not factors[0, :3].any()
    rests = case.rests()
    lengths, absolute = (rests**2).sum(axis=1), np.abs(rests).sum(axis=1)
    expected = np.divide(lengths, absolute, out=np.zeros_like(lengths), where=absolute > 0)
    np.testing.assert_allclose(factors[1], expected, rtol=1e-3, atol=1e-6)
    q = turned(case.queries.astype(np.float64), dim)
    # A query's elements are fifteen steps of a seventh of its largest: each is off by half of one at most.
    steps = np.abs(q).max(axis=1, keepdims=True) / 7
    signs = np.where(rests >= 0, 1.0, -1.0)
    rounded = np.rint(q / steps) * steps
    near = np.abs(rests).min(axis=1) > 1e-4  # elsewhere a sign may be either
    np.testing.assert_allclose(sums[1:, near], (rounded @ signs.T)[1:, near], rtol=1e-3, atol=0.02 * dim**0.5)


@pytest.mark.parametrize("dim", DIMS)
def test_estimates_are_right_on_average(isa: str, dim: int) -> None:
    """What is estimated is too high or too low as a rule, or off by more than it is taken to be."""
    case = Case(dim, queries=60)
    slots = np.tile(np.arange(case.slots), (60, 1))
    sums, factors = case.codes.sums(case.queries, slots)
    q = case.queries.astype(np.float64)
    real = q @ case.keys.float32().astype(np.float64).T
    off = q @ case.centroids[case.assigned].astype(np.float64).T + factors * sums - real
    unit = factors * np.linalg.norm(q, axis=1)[:, None]
    there = unit > 0
    relative = off[there] / unit[there]
    assert abs(relative.mean()) < 0.02
    assert 0.4 < relative.std() < 0.8
    assert (np.abs(off[~there]) < 1e-3).all(), "a key that is its centroid is known exactly"


@pytest.mark.parametrize("margin", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("top_k", [1, 20, 150])
def test_what_is_found(isa: str, threads: int, margin: float, top_k: int) -> None:
    """Scores are estimates, entries are found that are not live or in lists not chosen, or one twice."""
    case = Case(300)
    lists = Lists(case.lists, case.slots)
    lists.put(0, case.assigned)
    chosen = np.zeros((len(case.queries), 1), dtype=np.uint32)
    chosen[:, 0] = np.random.default_rng(1).integers(0, 2**case.lists, len(chosen))
    chosen[3] = 0
    live = (slice(300, 400), slice(0, 150))
    case.codes._margins[1] = learnt = Margin()
    learnt.far = margin
    best = kernels.Best(len(case.queries), top_k)
    for part in (slice(0, 9), slice(9, len(case.queries))):
        case.codes.ask(
            best, case.queries, case.keys.raw, part, dtype=case.dtype, live=live, chosen=chosen, lists=lists
        )
    scores, found = best.ordered()
    real = case.queries.astype(np.float64) @ case.keys.float32().astype(np.float64).T
    is_live = np.zeros(case.slots, bool)
    for part in live:
        is_live[part] = True
    for n in range(len(found)):
        there = found[n][found[n] >= 0]
        open_to = np.flatnonzero(is_live & (chosen[n, 0] >> case.assigned & 1).astype(bool))
        assert len(there) == min(top_k, len(open_to))
        assert len(set(there.tolist())) == len(there)
        assert np.isin(there, open_to).all()
        np.testing.assert_allclose(scores[n, : len(there)], real[n, there], atol=1e-3)
        if margin == 100.0:  # so much that every key is read
            wanted = np.sort(real[n, open_to])[::-1][:top_k]
            np.testing.assert_allclose(scores[n, : len(there)], wanted, atol=1e-3)


@pytest.mark.parametrize("dtype", [Dtype.FLOAT16, Dtype.BFLOAT16])
@pytest.mark.parametrize("kind", ["mixture", "subspace", "anisotropic", "sphere"])
def test_recall_is_what_was_asked(kind: str, dtype: Dtype) -> None:
    """Candidates are given up that are among the best, more often than the namespace allows."""
    rng = np.random.default_rng(3)
    keys = from_float32(spread(kind, rng, 6000, 256), dtype)
    file, live = filed(keys), [slice(0, 6000)]
    learnt_from, asked = spread(kind, rng, 64, 256), spread(kind, rng, 200, 256)
    real = learnt_from @ keys.float32().T
    hits = np.argsort(-real, axis=1)[:, :20].astype(np.int64)
    file.learn(learnt_from, hits, keys=keys.raw, dtype=dtype, live=live)
    file.settle(0.95)
    assert share(file, keys, asked, live) >= 0.95 - 0.02


def test_entries_that_move_keep_their_codes() -> None:
    """After evictions from the middle, keys are estimated by the codes of others."""
    rng = np.random.default_rng(4)
    keys = from_float32(spread("subspace", rng, 4000, 256), Dtype.FLOAT32)
    file, live = filed(keys, lists=40), [slice(0, 4000)]
    queries = spread("subspace", rng, 64, 256)
    hits = np.argsort(-(queries @ keys.float32().T), axis=1)[:, :20].astype(np.int64)
    file.learn(queries, hits, keys=keys.raw, dtype=keys.dtype, live=live)
    file.settle(0.95)
    order = np.sort(rng.choice(4000, 3000, replace=False)).astype(np.int64)
    moved = DenseArray(np.ascontiguousarray(keys.raw[order]), keys.dtype)
    run_through(file.moving(order, 3000, head=0))
    assert share(file, moved, queries, [slice(0, 3000)]) >= 0.9
    # Slots are written anew: pending until they are assigned, then by new codes.
    moved.raw[500:1500] = moved.raw[2000:] + 0.01 * rng.standard_normal((1000, 256), dtype=np.float32)
    file.wrote(slice(500, 1500))
    assert share(file, moved, queries, [slice(0, 3000)]) >= 0.9
    while len(file.pending):
        file.assign(moved.raw, moved.dtype, step=upkeep.STEP)
    assert not len(file.strangers.slots)
    assert share(file, moved, queries, [slice(0, 3000)]) >= 0.9
    assert share(file, moved, queries, [slice(1200, 2900), slice(0, 400)]) >= 0.9


def test_alike_and_empty_keys() -> None:
    """Zero vectors, equal keys, or a query of zeroes end the process, or give scores that are none."""
    raw = np.zeros((2000, 256), np.float32)
    raw[1000:] = np.float32(0.25)
    keys = DenseArray(raw, Dtype.FLOAT32)
    file = filed(keys, lists=8)
    queries = np.concatenate([np.zeros((1, 256)), np.full((1, 256), 0.5)]).astype(np.float32)
    scores, found = run_through(file.search(queries, keys.raw, keys.dtype, live=[slice(0, 2000)], top_k=20))
    assert (scores[0] == 0).all()
    np.testing.assert_allclose(scores[1], 32.0, rtol=1e-5)
    assert (found[1] >= 1000).all()


def test_small_keys_have_none() -> None:
    """Memory of small keys grows by half, for nothing."""
    rng = np.random.default_rng(0)
    small, large = (filed(normal(rng, 1000, dim), lists=8) for dim in (64, 256))
    assert small.bytes < 1000 * 16 + 8 * 64 * 4 + 16_384
    assert large.bytes > small.bytes + 1000 * 256 // 8
