"""Search that leaves keys out by rounded products: it must find what is found without them.

What is found is compared with NumPy, too, for all instruction sets that this processor has; the cases are
those in which rounding, to bfloat16 or to integers, could mislead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from recollect_server.domain.arrays import DenseArray, Float32, Int64, from_float32
from recollect_server.domain.spec import Dtype
from recollect_server.engine import kernels
from recollect_server.engine.kernel_lists import Lists, Probing
from tests.unit.server.conftest import use_instruction_set
from tests.unit.server.scanned_keys import Float64, check, normal, scanned

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")

QUERIES, KEYS = 70, 5000
"""Enough that products are rounded first; neither fills its last block."""


def same_without(isa: str, search: Callable[[], tuple[Float32, Int64]]) -> tuple[Float32, Int64]:
    """What it finds, which is to be the same, bit for bit, with plain vectors if the processor has them."""
    found = search()
    if isa in ("vnni", "amx") and use_instruction_set("avx512"):
        plain = search()
        use_instruction_set(isa)
        np.testing.assert_array_equal(found[1], plain[1])
        np.testing.assert_array_equal(found[0].view(np.uint32), plain[0].view(np.uint32))
    return found


def in_float32(queries: Float64, keys: Float64) -> tuple[DenseArray, DenseArray]:
    """Both, for a search."""
    asked, held = (from_float32(array.astype(np.float32), Dtype.FLOAT32) for array in (queries, keys))
    return asked, held


def check_scan(
    isa: str,
    queries: DenseArray,
    keys: DenseArray,
    top_k: int,
    *,
    parts: Sequence[slice] = (slice(0, KEYS),),
    bias: Float32 | None = None,
) -> None:
    """Against NumPy, and against the same search without rounded products."""
    found = same_without(isa, lambda: scanned(queries, keys, top_k, parts=parts, bias=bias))
    check(found, queries, keys, parts=parts, bias=bias)


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("dim", [1, 31, 32, 33, 64, 100, 300])
def test_any_size(isa: str, threads: int, dtype: Dtype, dim: int) -> None:
    """Elements, queries or keys beyond the last whole tile are left out, or others are taken for them."""
    rng = np.random.default_rng(dim)
    for count in (24, 32, 33, 48, 64, 65, QUERIES):
        queries, keys = normal(rng, 1, count, dim, dtype=dtype), normal(rng, 1, KEYS, dim, dtype=dtype)
        check_scan(isa, queries, keys, 16)


@pytest.mark.parametrize("top_k", [1, 32, 39, 600])
def test_in_parts(isa: str, threads: int, top_k: int) -> None:
    """What an earlier part found is forgotten, or bounds what comes wrongly."""
    rng = np.random.default_rng(top_k)
    queries, keys = normal(rng, 2, QUERIES, 48), normal(rng, 2, KEYS, 48)
    check_scan(isa, queries, keys, top_k, parts=[slice(3000, 3129), slice(3500, KEYS), slice(0, 2900)])


@pytest.mark.parametrize("largest", [1e-3, 1.0, 1e4])
def test_with_a_bias(isa: str, threads: int, largest: float) -> None:
    """The bias counts for nothing where keys are left out: another centroid is nearest."""
    rng = np.random.default_rng(1)
    queries, keys = normal(rng, 1, QUERIES, 64), normal(rng, 1, KEYS, 64)
    bias = (largest * rng.standard_normal(KEYS)).astype(np.float32)
    check_scan(isa, queries, keys, 1, bias=bias)


@pytest.mark.parametrize("apart", [1e-2, 1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("dtype", [Dtype.FLOAT32, Dtype.FLOAT16])
def test_keys_that_rounding_makes_equal(isa: str, threads: int, dtype: Dtype, apart: float) -> None:
    """The best of keys that differ by less than rounding can tell is missed."""
    rng = np.random.default_rng(2)
    base = rng.standard_normal(64)
    near = base + apart * rng.standard_normal((1, KEYS, 64))
    queries = from_float32((base + rng.standard_normal((1, QUERIES, 64))).astype(np.float32), dtype)
    check_scan(isa, queries, from_float32(near.astype(np.float32), dtype), 32)


@pytest.mark.parametrize("of_queries", [False, True])
def test_errors_that_all_add_up(isa: str, of_queries: bool) -> None:
    """The bound is what errors are on average: a key that rounding lowers in each element is missed."""
    lowered, step = np.float32(1 + 2.0**-8), np.float32(2.0**-7)  # bfloat16 makes 1 of the first
    keys = np.full((1, KEYS, 64), 0.5, np.float32)
    better = np.arange(2600, KEYS, 300)
    if of_queries:
        keys[0, :2500], keys[0, better] = 1, 1
        keys[0, :2500, 0] -= 13 * step
    else:
        keys[0, :2500], keys[0, better] = 1, lowered
        keys[0, :2500, :28] += step
    queries = np.full((1, QUERIES, 64), lowered if of_queries else 1, np.float32)
    parts = [slice(0, 2500), slice(2500, KEYS)]
    wide = in_float32(queries.astype(np.float64), keys.astype(np.float64))
    found = same_without(isa, lambda: scanned(*wide, len(better), parts=parts))
    assert (found[1] == better).all()


@pytest.mark.parametrize("of_queries", [False, True])
def test_errors_of_steps_that_all_add_up(isa: str, of_queries: bool) -> None:
    """The same for integers: a key is missed if all its elements, or those of the query, are rounded down."""
    largest = np.float32(np.floor(np.sqrt((2**31 - 1) / 65)))  # so that a step is 1
    keys, queries = np.zeros((1, KEYS, 65), np.float32), np.zeros((1, QUERIES, 65), np.float32)
    better = np.arange(2600, KEYS, 300)
    if of_queries:
        queries[..., :32], queries[..., 32:64], queries[..., 64] = 100.51, 100.49, largest
        keys[0, :2500, :32] = 1
        keys[0, better, 32:64] = 1.0003
    else:
        queries[..., :64] = 1
        keys[0, :2500, :32], keys[0, :2500, 32:64], keys[..., 64] = 100.51, 100.4, largest
        keys[0, better, :64] = 100.49
    parts = [slice(0, 2500), slice(2500, KEYS)]
    wide = in_float32(queries.astype(np.float64), keys.astype(np.float64))
    found = same_without(isa, lambda: scanned(*wide, len(better), parts=parts))
    assert (found[1] == better).all()


@pytest.mark.parametrize("of_queries", [False, True])
@pytest.mark.parametrize("scale", [1e-42, 1e-38, 1e-30, 1e-19, 1e-10, 1e15, 1e18])
def test_the_very_small_and_the_very_large(isa: str, scale: float, of_queries: bool) -> None:
    """Products below or beyond what rounding can tell apart are all taken to be alike, and left out."""
    rng = np.random.default_rng(3)
    queries, keys = rng.standard_normal((1, QUERIES, 40)), rng.standard_normal((1, KEYS, 40))
    small, other = (queries, keys) if of_queries else (keys, queries)
    small *= scale
    if scale < 1e-37:  # what is below the normal numbers can make products that are not
        other *= 1e6
    wide = in_float32(queries, keys)
    found = same_without(isa, lambda: scanned(wide[0], wide[1], 16, parts=[slice(0, KEYS)]))
    if scale >= 1e-30:  # (of numbers below the normal ones float32 keeps few digits)
        check(found, *wide, parts=[slice(0, KEYS)])


def test_sums_that_only_overflow_in_another_order(isa: str) -> None:
    """A key whose rounded products become infinite is taken for one that has no score."""
    keys = np.tile(np.array([3e19, -3e19], np.float32), 32)[None, None].repeat(KEYS, axis=1)
    keys[0, :, 63] *= 1 + np.random.default_rng(7).permutation(KEYS).astype(np.float32) / (16 * KEYS)
    queries = np.full((1, QUERIES, 64), 1e19, np.float32)
    check_scan(isa, *in_float32(queries.astype(np.float64), keys.astype(np.float64)), 16)


def test_keys_of_all_lengths_side_by_side(isa: str, threads: int) -> None:
    """The errors of a large key are taken for those of its small neighbours, or the other way round."""
    rng = np.random.default_rng(4)
    keys = rng.standard_normal((1, KEYS, 64)) * 10.0 ** rng.uniform(-6, 6, (1, KEYS, 1))
    queries = rng.standard_normal((1, QUERIES, 64)) * 10.0 ** rng.uniform(-6, 6, (1, QUERIES, 1))
    queries[0, 5] = 0
    wide = in_float32(queries, keys)
    found = same_without(isa, lambda: scanned(wide[0], wide[1], 16, parts=[slice(0, KEYS)]))
    for n in range(QUERIES):
        one = DenseArray(wide[0].raw[:, n : n + 1], Dtype.FLOAT32)
        check((found[0][:, n : n + 1], found[1][:, n : n + 1]), one, wide[1], parts=[slice(0, KEYS)])


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf, 3e38])
def test_a_key_that_is_no_number_hides_no_other(isa: str, strange: float) -> None:
    """One key that should never have been stored makes its neighbours unfindable."""
    rng = np.random.default_rng(5)
    queries, keys = normal(rng, 1, QUERIES, 64), normal(rng, 1, KEYS, 64)
    places = np.arange(7, KEYS, 100)
    keys.raw[0, places, 3] = strange
    with np.errstate(all="ignore"):
        found = same_without(isa, lambda: scanned(queries, keys, 16, parts=[slice(0, KEYS)]))
        real = queries.float32().astype(np.float64)[0] @ keys.float32().astype(np.float64)[0].T
        real[np.isnan(real)] = -np.inf
        wanted = -np.sort(-real, axis=1)[:, :16].astype(np.float32)
    np.testing.assert_allclose(found[0][0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize("place", [4970, 4940, 30, 0])
def test_a_key_that_is_no_number_bounds_no_other(isa: str, place: int, strange: float) -> None:
    """What it makes of its panel counts as found: other keys would have to be better than that."""
    rng = np.random.default_rng(8)
    queries = from_float32(np.abs(rng.standard_normal((1, QUERIES, 64))).astype(np.float32), Dtype.FLOAT32)
    keys = normal(rng, 1, KEYS, 64)
    keys.raw[0, -5:] = 3  # the very best, in the last panel
    keys.raw[0, place] = -1
    keys.raw[0, place, 3] = -np.abs(strange)
    with np.errstate(all="ignore"):
        found = same_without(isa, lambda: scanned(queries, keys, 16, parts=[slice(0, KEYS)]))
    keys.raw[0, place] = -1e6  # it is never among the best
    check(found, queries, keys, parts=[slice(0, KEYS)])


def test_what_is_not_live_bounds_nothing(isa: str, threads: int) -> None:
    """Entries that were evicted count as found: what is worse than they are, yet the best, is left out."""
    rng = np.random.default_rng(6)
    lists, dim, top_k = 8, 32, 10
    keys, queries = normal(rng, KEYS, dim), normal(rng, QUERIES, dim).float32()
    dead = np.arange(KEYS) % 2000 < 1000
    keys.raw[dead] *= 10
    held = Lists(lists, KEYS)
    held.put(0, np.arange(KEYS) % lists)
    live = (slice(3000, 4000), slice(1000, 2000))

    def probed() -> tuple[Float32, Int64]:
        best = kernels.Best(QUERIES, top_k)
        probing = Probing(
            held,
            best,
            queries=queries,
            centroids=normal(rng, lists, dim).float32(),
            radii=np.ones(32, np.float32),
            keys=keys.raw,
            dtype=Dtype.FLOAT32,
            live=live,
            nearest=2,
            reach=np.inf,
        )
        probing.ask_nearest(slice(0, QUERIES))
        probing.order()
        probing.ask(slice(0, lists))
        return best.ordered()

    scores, slots = probed()
    check(
        (scores[None], slots[None]), from_float32(queries[None], Dtype.FLOAT32), _one_head(keys), parts=live
    )


def _one_head(keys: DenseArray) -> DenseArray:
    return DenseArray(keys.raw[None], keys.dtype)
