"""How far queries reach in an inverted file, from what was learnt of others."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from recollect_server.domain.arrays import DenseArray, from_float32
from recollect_server.domain.spec import Dtype
from recollect_server.domain.steps import run_through
from recollect_server.engine import kernels
from recollect_server.engine.ivf import InvertedFile
from recollect_server.engine.reach import Reach
from tests.unit.server.filed_keys import filed, share, spread

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")

DIM, ENTRIES, SAMPLES, RECALL = 48, 6000, 64, 0.95


def teach(file: InvertedFile, keys: DenseArray, queries: NDArray[np.float32]) -> None:
    """Has it learn from queries and their true 20 best."""
    hits = np.argsort(-(queries @ keys.float32().T), axis=1)[:, :20].astype(np.int64)
    file.learn(queries, hits, keys=keys.raw, dtype=keys.dtype, live=[slice(0, len(keys.raw))])
    file.settle(RECALL)


@pytest.mark.parametrize("kind", ["anisotropic", "subspace"])
@pytest.mark.parametrize("distinct", [4, 16, SAMPLES])
def test_the_same_queries_again_prove_little(kind: str, distinct: int) -> None:
    """A few queries that come again and again decide that too little is looked at for all others."""
    rng = np.random.default_rng(3)
    keys, live = from_float32(spread(kind, rng, ENTRIES, DIM), Dtype.FLOAT32), [slice(0, ENTRIES)]
    file = filed(keys)
    queries = np.tile(spread(kind, rng, distinct, DIM), (SAMPLES // distinct, 1))
    teach(file, keys, queries)
    assert share(file, keys, spread(kind, rng, 300, DIM), live) >= RECALL
    assert file.probes < len(file.centroids) / 2


def test_what_was_learnt_of_fewer_entries_proves_little() -> None:
    """A bank that has grown is searched as far as it had to be when it was small."""
    rng = np.random.default_rng(4)
    keys = from_float32(spread("subspace", rng, ENTRIES, DIM), Dtype.FLOAT32)
    file = filed(keys)

    def learn(count: int) -> None:
        teach(file, keys, spread("subspace", rng, count, DIM))

    learn(200)
    assert file.probes == file.probes_hoped
    file.begin_judging(ENTRIES + ENTRIES // 4)
    learn(8)
    assert (file.probes, file.judged) == (file.probes_hoped, 2)
    file.begin_judging(2 * ENTRIES)
    learn(8)
    assert file.probes > file.probes_hoped
    assert file.judged == 1


def test_a_doubt_ends_when_it_is_judged() -> None:
    """A bank that grew, and shrank before anybody read, is looked into too far for ever, or said to be."""
    rng = np.random.default_rng(4)
    keys = from_float32(spread("subspace", rng, ENTRIES, DIM), Dtype.FLOAT32)
    file = filed(keys)

    def learn() -> None:
        file.begin_judging(ENTRIES)
        teach(file, keys, spread("subspace", rng, 200, DIM))

    learn()
    before = file.probes
    file.doubt(RECALL, entries=ENTRIES + ENTRIES // 4)
    assert (file.is_doubted, file.probes) == (False, before)
    file.doubt(RECALL, entries=3 * ENTRIES)
    assert (file.is_doubted, file.probes > before) == (True, True)
    learn()
    assert (file.is_doubted, file.probes <= 1.2 * before) == (False, True)
    file.begin_judging(3 * ENTRIES)  # which takes a while
    assert file.is_doubted
    teach(file, keys, spread("subspace", rng, 200, DIM))
    assert not file.is_doubted


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8])
def test_few_large_queries_choose_the_lists_that_many_do(count: int) -> None:
    """Few large queries are multiplied with centroids in a way of their own: they look into wrong lists."""
    rng, dim = np.random.default_rng(8), 150  # no whole number of vectors
    weights = np.where(np.arange(dim) < 144, 1, 8).astype(np.float32)  # so what is beyond counts
    keys, live = from_float32(weights * spread("mixture", rng, 3000, dim), Dtype.FLOAT32), [slice(0, 3000)]
    file = filed(keys, lists=61)
    queries = weights * spread("mixture", rng, 64, dim)
    teach(file, keys, queries)
    assert file.probes < len(file.centroids) / 2

    def found(asked: NDArray[np.float32]) -> NDArray[np.int64]:
        answer = run_through(file.search(asked, keys.raw, keys.dtype, live=live, top_k=20))
        return np.asarray(answer[1])

    many = found(queries)
    few = np.concatenate([found(queries[at : at + count]) for at in range(0, 64, count)])
    assert (few == many).all(axis=1).mean() >= 0.95


@pytest.mark.parametrize("kind", ["normal", "exponential"])
@pytest.mark.parametrize(("hits", "least"), [(40, 0.994), (300, 0.998)])
def test_few_hits_tell_of_rare_ones(kind: str, hits: int, least: float) -> None:
    """Of few hits the farthest is taken for as far as one in a thousand: too little is found for ever."""
    rng = np.random.default_rng(5)

    def draw(size: int) -> NDArray[np.float32]:
        if kind == "exponential":
            return rng.exponential(0.15, size).astype(np.float32)
        return (0.4 + 0.3 * rng.standard_normal(size)).astype(np.float32)

    found: dict[float, list[float]] = {0.95: [], 0.999: []}
    for _ in range(40):
        reach = Reach()
        reach.learn(draw(hits), draw(1000))
        for wanted, shares in found.items():
            reach.settle(wanted)
            assert np.isfinite(reach.far)
            shares.append(float((draw(20_000) < reach.far).mean()))
    assert np.mean(found[0.999]) >= least
    assert 0.9 <= np.mean(found[0.95]) <= 0.98  # of what is not rare they tell by themselves


def test_hits_that_are_all_alike() -> None:
    """Where all hits are equally near there is no tail to learn from, and it divides by nothing."""
    reach = Reach()
    reach.learn(np.full(50, 0.5, dtype=np.float32), np.linspace(0, 3, 100, dtype=np.float32))
    for wanted in (0.5, 0.999, 1.0):
        reach.settle(wanted)
        assert reach.far == pytest.approx(0.5, abs=0.02)
