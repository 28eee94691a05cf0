"""Calls of the kernels with arrays of all sizes, each just as large as it has to be, against NumPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

import recollect._rounding as rounding
from recollect_server.domain import int8_rows
from recollect_server.domain.arrays import DenseArray, Raw, RowBytes, from_float32
from recollect_server.domain.spec import STEP_BYTES, Dtype, ValueDtype
from recollect_server.engine import codes, kernel_lists, kernel_rows, kernels
from recollect_server.engine.codes import Codes, Margin
from recollect_server.engine.kernel_lists import Lists, Probing, multiply_centroids
from tests.property.exact_arrays import Exact
from tests.unit.server.scanned_keys import Float64, check, in_64, scanned, spec_of

COUNTS = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 47, 48, 49, 64, 100, 130)
"""Of queries: around what is done at a time, and where rounded products begin."""

ROWS = (1, 2, 15, 16, 17, 31, 32, 33, 100, 257, 1000)
MANY_ROWS = 9000
"""So many that threads share them, or that rounded products pay, as a rule."""

Case = Callable[[Exact], None]


def use_exact(patch: pytest.MonkeyPatch, exact: Exact) -> None:
    """What the kernels' functions make for themselves is exact, too."""
    for module in (kernels, kernel_lists, kernel_rows, codes):
        patch.setattr(module, "np", exact)
    signs_of = codes.signs_of
    patch.setattr(codes, "signs_of", lambda dim: exact.of(signs_of(dim)))
    # Without the room to begin with a line of the cache.
    stride_of = codes._stride
    patch.setattr(codes, "_rows", lambda slots, dim: exact.zeros((slots, stride_of(dim)), np.uint64))


def draw(exact: Exact, *shape: int, dtype: Dtype = Dtype.FLOAT32) -> DenseArray:
    """From a normal distribution; now and then many are zero."""
    numbers = exact.rng.standard_normal(shape).astype(np.float32)
    if exact.rng.random() < 0.1:
        numbers *= exact.rng.random(shape) < 0.1
    made = from_float32(numbers, dtype)
    return DenseArray(exact.of(made.raw), dtype)


def some_dtype(exact: Exact) -> Dtype:
    return list(Dtype)[exact.rng.integers(3)]


def some_values(
    exact: Exact, *shape: int, of_keys: Dtype
) -> tuple[Raw | RowBytes, Dtype | ValueDtype, Float64]:
    """As they are stored beside keys of a dtype, in what, and in float64."""
    if exact.rng.random() < 0.5:
        values = draw(exact, *shape, dtype=of_keys)
        return values.raw, of_keys, in_64(values)
    rows = exact.of(int8_rows.pack(draw(exact, *shape).float32()))
    return rows, ValueDtype.INT8, int8_rows.unpack(rows).astype(np.float64)


def some_dim(exact: Exact) -> int:
    return int(exact.rng.integers(1, 131))


def parts_of(exact: Exact, rows: int) -> list[slice]:
    """One slice or two, at the ends of a buffer as a rule."""
    first, second = sorted(exact.rng.integers(0, rows + 1, 2).tolist())
    cut = [slice(second, rows), slice(0, first)] if exact.rng.random() < 0.7 else [slice(first, second)]
    return [part for part in cut if part.start < part.stop] or [slice(0, rows)]


def some_slots(exact: Exact, shape: tuple[int, ...], rows: int) -> NDArray[np.int64]:
    """The last one often, and -1."""
    slots = exact.rng.integers(rows, size=shape)
    slots[exact.rng.random(shape) < 0.2] = rows - 1
    slots[exact.rng.random(shape) < 0.2] = -1
    return exact.of(slots)


def of_slots(rows: Float64, slots: NDArray[np.int64]) -> Float64:
    """Rows [heads, slots, D] at [heads, n, K]; zeroes for -1."""
    found: Float64 = rows[np.arange(len(rows))[:, None, None], slots]
    found[slots < 0] = 0
    return found


def softmax(scores: Float64, slots: NDArray[np.int64]) -> tuple[Float64, Float64]:
    """Weights [..., K] and LSE [...] of scores where slots are."""
    scores = np.where(slots >= 0, scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = weights.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse: Float64 = (np.log(total) + top)[..., 0]
    return weights / np.where(total > 0, total, 1), lse


def scan(exact: Exact) -> None:
    """Some queries against some slots."""
    rng, dim, heads = exact.rng, some_dim(exact), int(exact.rng.integers(1, 4))
    count, rows = int(rng.choice(COUNTS)), MANY_ROWS if rng.random() < 0.1 else int(rng.choice(ROWS))
    queries = draw(exact, heads, count, dim, dtype=some_dtype(exact))
    keys, parts = draw(exact, heads, rows, dim, dtype=some_dtype(exact)), parts_of(exact, rows)
    bias = draw(exact, rows).float32() if heads == 1 and rng.random() < 0.3 else None
    found = scanned(queries, keys, int(rng.choice([1, 2, 8, 33, 300])), parts=parts, bias=bias)
    check(found, queries, keys, parts=parts, bias=bias)


def attend(exact: Exact) -> None:
    """Values of some slots."""
    rng, dim, (heads, count) = exact.rng, some_dim(exact), exact.rng.integers(1, (4, 150)).tolist()
    top_k, rows = int(rng.choice([1, 2, 17, 64, 70])), int(rng.choice(ROWS))
    values, dtype, values_in_64 = some_values(exact, heads, rows, dim, of_keys=some_dtype(exact))
    scores = draw(exact, heads, count, top_k).float32()
    slots = some_slots(exact, scores.shape, rows)
    output, lse = draw(exact, heads, count, dim).float32(), draw(exact, heads, count).float32()
    kernels.attend(scores, slots, values, dtype=dtype, scale=0.5, output=output, lse=lse)
    weights, wanted = softmax(0.5 * scores.astype(np.float64), slots)
    np.testing.assert_allclose(lse, wanted, atol=1e-4)
    chosen = np.einsum("hnk,hnkd->hnd", weights, of_slots(values_in_64, slots))
    np.testing.assert_allclose(output, chosen, atol=1e-4)


def attend_backward(exact: Exact) -> None:
    """Keys and values of some slots."""
    rng, (heads, count) = exact.rng, exact.rng.integers(1, (4, 150)).tolist()
    dim, value_dim, dtype = some_dim(exact), some_dim(exact), some_dtype(exact)
    rows, top_k = int(rng.choice(ROWS)), int(rng.choice([1, 2, 17]))
    keys = draw(exact, heads, rows, dim, dtype=dtype)
    values, of_values, values_in_64 = some_values(exact, heads, rows, value_dim, of_keys=dtype)
    queries, grads = draw(exact, heads, count, dim).float32(), draw(exact, heads, count, value_dim).float32()
    grad_lse = draw(exact, heads, count).float32() if rng.random() < 0.5 else None
    slots = some_slots(exact, (heads, count, top_k), rows)
    found = kernels.attend_backward(
        queries,
        slots,
        keys.raw,
        values,
        spec=spec_of(of_values, dtype),
        scale=0.1,
        grad_output=grads,
        grad_lse=grad_lse,
    )
    k, v = of_slots(in_64(keys), slots), of_slots(values_in_64, slots)
    weights, _ = softmax(0.1 * np.einsum("hnd,hnkd->hnk", queries.astype(np.float64), k), slots)
    of_output = np.einsum("hnd,hnkd->hnk", grads.astype(np.float64), v)
    shared = (weights * of_output).sum(axis=-1) - (0 if grad_lse is None else grad_lse)
    wanted = 0.1 * np.einsum("hnk,hnkd->hnd", weights * (of_output - shared[..., None]), k)
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def gather(exact: Exact) -> None:
    """Rows as they are, as float32 and as another dtype; as integers, and those; sums of rows."""
    count, rows, dim, dtype = int(exact.rng.integers(1, 3000)), 50, some_dim(exact), some_dtype(exact)
    source, slots = draw(exact, rows, dim, dtype=dtype), some_slots(exact, (count,), rows)
    wanted = np.where(slots[:, None] >= 0, source.float32()[slots], 0)
    for to_dtype in Dtype:
        into = draw(exact, count, dim, dtype=to_dtype)
        kernels.gather(source.raw, slots, into.raw, dtype=dtype, to_dtype=to_dtype)
        np.testing.assert_array_equal(into.raw, from_float32(wanted, to_dtype).raw)
    packed = kernels.to_int8(source)
    np.testing.assert_array_equal(packed, int8_rows.pack(source.float32()))
    wide = draw(exact, count, dim).float32()
    kernels.gather(packed, slots, wide, dtype=ValueDtype.INT8, to_dtype=Dtype.FLOAT32)
    np.testing.assert_array_equal(wide, np.where(slots[:, None] >= 0, int8_rows.unpack(packed)[slots], 0))
    sums, counts = exact.of(np.zeros((rows, dim))), exact.of(np.zeros(rows, np.int64))
    kernels.accumulate(wide, slots, sums, counts)
    np.testing.assert_array_equal(counts, np.bincount(slots[slots >= 0], minlength=rows))
    np.testing.assert_allclose(sums.sum(axis=0), wide.astype(np.float64).sum(axis=0), atol=1e-6)


def attend_rows(exact: Exact) -> None:
    """Banks of several sizes, some with nothing live."""
    rng, dtype, query_dtype = exact.rng, some_dtype(exact), some_dtype(exact)
    dim, value_dim, (heads, count) = some_dim(exact), some_dim(exact), rng.integers(1, (4, 70)).tolist()
    sizes = rng.choice(ROWS, rng.integers(1, 5)).tolist()
    keys_of = [draw(exact, heads, rows, dim, dtype=dtype) for rows in sizes]
    of_values = exact.rng.choice([0, 1])  # all banks of a namespace are alike
    drawn = [draw(exact, heads, rows, value_dim, dtype=dtype) for rows in sizes]
    packed = [exact.of(int8_rows.pack(values.float32())) for values in drawn]
    values_of = [int8_rows.unpack(rows) for rows in packed] if of_values else [v.float32() for v in drawn]
    stored: Sequence[Raw | RowBytes] = packed if of_values else [values.raw for values in drawn]
    live = [parts_of(exact, rows) if rng.random() < 0.8 else [] for rows in sizes]
    queries = draw(exact, len(sizes), heads, count, dim, dtype=query_dtype)
    places = [kernel_rows.Place.of(keys.raw, rows) for keys, rows in zip(keys_of, stored, strict=True)]
    output, lse, slots = kernel_rows.attend_rows(
        queries.raw,
        [kernel_rows.Row(*row) for row in zip(places, live, strict=True)],
        query_dtype=query_dtype,
        spec=spec_of(ValueDtype.INT8 if of_values else dtype, dtype, value_dim=value_dim),
        top_k=int(rng.choice([1, 5, 40])),
        scale=0.3,
    )
    for row, (keys, values) in enumerate(zip(keys_of, values_of, strict=True)):
        asked, found = queries.row(row), slots[row]
        scores = np.einsum("hnd,hnkd->hnk", in_64(asked), of_slots(in_64(keys), found))
        if live[row]:
            shown = np.where(found >= 0, scores, -np.inf).astype(np.float32)
            order = np.minimum.accumulate(shown, axis=-1)  # nearly equal ones may lie in the other order
            check((order, found), asked, keys, parts=live[row])
        else:
            assert (found == -1).all()
        weights, wanted = softmax(0.3 * scores, found)
        np.testing.assert_allclose(lse[row], wanted, atol=1e-3)
        chosen = np.einsum("hnk,hnkd->hnd", weights, of_slots(values.astype(np.float64), found))
        np.testing.assert_allclose(output[row], chosen, atol=1e-3)


class Filed:
    """Keys in lists, some in none, some taken out and put back."""

    def __init__(self, exact: Exact, dim: int) -> None:
        rng, self.rows, self.count = exact.rng, int(exact.rng.choice(ROWS)), int(exact.rng.choice(COUNTS))
        self.lists, self.dtype, self.top_k = (
            int(rng.integers(1, 80)),
            some_dtype(exact),
            int(rng.choice([1, 20, 90])),
        )
        self.keys, self.queries = (
            draw(exact, self.rows, dim, dtype=self.dtype),
            draw(exact, self.count, dim).float32(),
        )
        self.centroids, self.words = draw(exact, self.lists, dim).float32(), -(-self.lists // 32)
        self.held = Lists(self.lists, self.rows - self.rows // 3)
        self.held.extend(self.rows)
        self.assigned = exact.of(rng.integers(-1, self.lists, self.rows))
        for _ in range(3):
            first, last = sorted(rng.integers(0, self.rows + 1, 2).tolist())
            self.held.put(first, exact.of(rng.integers(-1, self.lists, last - first)))
        self.held.put(0, self.assigned)
        self.live = parts_of(exact, self.rows)
        np.testing.assert_array_equal(self.held.of_slots(), self.assigned)
        there = self.assigned[self.assigned >= 0]
        np.testing.assert_array_equal(self.held.sizes(), np.bincount(there, minlength=self.lists))

    @property
    def two_parts(self) -> Sequence[slice]:
        return (*self.live, slice(0, 0))[:2]

    def check(self, best: kernels.Best) -> None:
        """The best of all that is live and in a list."""
        scores, found = best.ordered()
        is_live = np.zeros(self.rows, bool)
        for part in self.live:
            is_live[part] = True
        reachable = np.flatnonzero(is_live & (self.assigned >= 0))
        real = self.queries.astype(np.float64) @ in_64(self.keys).T
        size = min(self.top_k, reachable.size)
        assert (found[:, size:] == -1).all()
        assert np.isin(found[:, :size], reachable).all()
        wanted = -np.sort(-real[:, reachable], axis=1)[:, :size]
        np.testing.assert_allclose(scores[:, :size], wanted, atol=1e-3)


def probe(exact: Exact) -> None:
    """All lists, the nearest first."""
    case = Filed(exact, int(exact.rng.choice([1, 3, 16, 40, 127, 128, 130])))
    best = kernels.Best(case.count, case.top_k)
    probing = Probing(
        case.held,
        best,
        queries=case.queries,
        centroids=case.centroids,
        radii=exact.of(np.ones(32 * case.words, np.float32)),
        keys=case.keys.raw,
        dtype=case.dtype,
        live=case.two_parts,
        nearest=int(exact.rng.integers(1, case.lists + 1)),
        reach=1e30,
    )
    half, lists = case.count // 2, int(exact.rng.integers(0, case.lists + 1))
    for queries in (slice(0, half), slice(half, case.count)):
        probing.ask_nearest(queries)
    probing.order()
    for part in (slice(0, lists), slice(lists, case.lists)):
        probing.ask(part)
    if case.queries.any(axis=1).all():  # a query of zeroes reaches nothing
        case.check(best)
    found, wanted = multiply_centroids(case.queries, case.centroids), case.queries @ case.centroids.T
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def probe_codes(exact: Exact) -> None:
    """All lists, by codes whose margin is so large that every key is read."""
    case = Filed(exact, int(exact.rng.choice([1, 63, 64, 65, 130, 256, 257, 512, 513, 800, 1100])))
    made = Codes(case.centroids, case.rows)
    for part in (slice(0, case.rows // 2), slice(case.rows // 2, case.rows)):
        made.put(part.start, exact.of(case.assigned[part]), case.keys.raw, case.dtype)
    sums, factors = made.sums(case.queries, some_slots(exact, (case.count, 3), case.rows))
    assert np.isfinite(sums).all()
    assert np.isfinite(factors).all()
    made._margins[1] = learnt = Margin()
    learnt.far = 1e6
    chosen = np.zeros((case.count, 32 * case.words), np.uint8)
    chosen[:, : case.lists] = 1
    bits = exact.of(np.packbits(chosen, axis=1, bitorder="little").view(np.uint32))
    best, half = kernels.Best(case.count, case.top_k), case.count // 2
    for part in (slice(0, half), slice(half, case.count)):
        if part.start < part.stop:
            made.ask(
                best,
                case.queries,
                case.keys.raw,
                part,
                dtype=case.dtype,
                live=case.two_parts,
                chosen=bits,
                lists=case.held,
            )
    if case.queries.any(axis=1).all():  # the margin is so much of a query's norm
        case.check(best)


def convert(exact: Exact) -> None:
    """The client's conversions."""
    numbers = exact.of(100 * exact.rng.standard_normal(exact.rng.integers(1, 70)).astype(np.float32))
    library, size = rounding.library(), numbers.size
    if library is None:
        return
    halves, brains = exact.empty(size, np.float16), exact.empty(size, np.uint16)
    wide = exact.empty(size, np.float32)
    for name, source, into in (
        ("rc_to_float16", numbers, halves),
        ("rc_from_float16", halves, wide),
        ("rc_to_bfloat16", numbers, brains),
    ):
        getattr(library, name)(source.ctypes.data, size, into.ctypes.data)
    rows = exact.empty((1, size + STEP_BYTES), np.uint8)
    assert library.rc_to_int8(numbers.ctypes.data, 1, size, rows.ctypes.data)
    np.testing.assert_array_equal(rows, int8_rows.pack(numbers[None]))
    np.testing.assert_array_equal(halves, numbers.astype(np.float16))
    np.testing.assert_array_equal(wide, halves.astype(np.float32))
    np.testing.assert_array_equal(brains, from_float32(numbers, Dtype.BFLOAT16).raw)


CASES: tuple[Case, ...] = (
    scan,
    attend,
    attend_backward,
    gather,
    attend_rows,
    probe,
    probe_codes,
    convert,
)
