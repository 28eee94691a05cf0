"""The compiled kernels for search and attention against NumPy, for each instruction set of this processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from recollect_server.domain.arrays import RAW_TYPES, DenseArray, Raw, from_float32
from recollect_server.domain.spec import Dtype, ValueDtype
from recollect_server.engine import kernel_rows, kernels
from tests.unit.server.scanned_keys import (
    STORED,
    Float64,
    check,
    in_64,
    normal,
    scanned,
    spec_of,
    stored,
)

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")

DIMS, QUERIES, ROWS = (1, 7, 16, 33, 64, 100, 768), (1, 2, 3, 4, 9, 70), (1, 31, 32, 33, 1000)


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("dim", DIMS)
def test_scan(isa: str, threads: int, dtype: Dtype, dim: int) -> None:
    """Some number of queries, keys or elements is multiplied wrongly, read past its end, or left out."""
    rng = np.random.default_rng(dim)
    for count in QUERIES:
        for rows in ROWS if threads == 1 or count in (1, 70) else (1000,):
            q, keys = (normal(rng, 2, n, dim, dtype=dtype) for n in (count, rows))
            cut = [slice(0, rows // 3), slice(rows // 3, rows - rows // 5), slice(rows - rows // 5, rows)]
            for parts in ([slice(0, rows)], [part for part in cut if part.start < part.stop]):
                check(scanned(q, keys, 10, parts=parts), q, keys, parts=parts)


@pytest.mark.parametrize("key_dtype", list(Dtype))
@pytest.mark.parametrize("query_dtype", list(Dtype))
@pytest.mark.parametrize("count", [1, 3, 40])
def test_scan_of_mixed_formats(isa: str, query_dtype: Dtype, key_dtype: Dtype, count: int) -> None:
    """Queries in one format are read as if they were in that of the keys."""
    rng = np.random.default_rng(0)
    q, keys = normal(rng, 2, count, 37, dtype=query_dtype), normal(rng, 2, 90, 37, dtype=key_dtype)
    parts = [slice(40, 90), slice(0, 13)]
    check(scanned(q, keys, 12, parts=parts), q, keys, parts=parts)


@pytest.mark.parametrize("top_k", [1, 8, 99, 100, 101, 300])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_top_k_up_to_all_and_more(isa: str, threads: int, top_k: int, count: int) -> None:
    """With room for about as many hits as there are entries, some are lost or made up."""
    rng = np.random.default_rng(top_k)
    q, keys = normal(rng, 1, count, 24), normal(rng, 1, 100, 24)
    parts = [slice(0, 60), slice(60, 100)]
    check(scanned(q, keys, top_k, parts=parts), q, keys, parts=parts)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_bias(isa: str, threads: int, count: int) -> None:
    """The bias of another slot is added, or none: the nearest centroid is not the nearest."""
    rng = np.random.default_rng(1)
    q, keys = normal(rng, 1, count, 19), normal(rng, 1, 333, 19)
    bias = (10 * rng.standard_normal(333)).astype(np.float32)
    parts = [slice(100, 333), slice(0, 50)]
    check(scanned(q, keys, 5, parts=parts, bias=bias), q, keys, parts=parts, bias=bias)


@pytest.mark.parametrize("count", [1, 4, 130])
def test_of_equal_scores_the_lower_slot_comes_first(isa: str, threads: int, count: int) -> None:
    """The same search finds one of two equal keys now and the other one then."""
    rng = np.random.default_rng(2)
    q = normal(rng, 1, count, 32)
    distinct = rng.standard_normal((25, 32)).astype(np.float32)
    order = np.tile(np.arange(25), 40)  # each key forty times
    keys = from_float32(distinct[order][None], Dtype.FLOAT32)
    _, slots = scanned(q, keys, 60, parts=[slice(0, 500), slice(500, 1000)])
    for row in slots[0]:
        best = order[row[0]]
        assert row[:40].tolist() == np.flatnonzero(order == best).tolist()
        second = order[row[40]]
        assert row[40:].tolist() == np.flatnonzero(order == second)[:20].tolist()


@pytest.mark.parametrize("top_k", [1, 8, 32])
@pytest.mark.parametrize("count", [1, 3, 10, 78])
def test_threads_that_share_keys_keep_the_lower_slots(isa: str, threads: int, count: int, top_k: int) -> None:
    """What threads found apart is put together in any order: of many equal scores later ones are taken."""
    rng = np.random.default_rng(count)
    q, keys = (
        from_float32(np.sign(rng.standard_normal((1, n, 17))).astype(np.float32), Dtype.FLOAT32)
        for n in (count, 24_000)
    )
    found = scanned(q, keys, top_k, parts=[slice(0, 2000), slice(2000, 24_000)])
    real = in_64(q)[0] @ in_64(keys)[0].T
    order = np.lexsort((np.broadcast_to(np.arange(24_000), real.shape), -real), axis=1)[:, :top_k]
    np.testing.assert_array_equal(found[1][0], order)


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("what", ["zero queries", "zero keys", "equal keys"])
def test_when_all_score_alike(isa: str, threads: int, dtype: Dtype, what: str) -> None:
    """Without a difference nothing is above a threshold: too few are found, or not the first ones."""
    rng = np.random.default_rng(3)
    for count in (1, 3, 33):
        q = normal(rng, 2, count, 20, dtype=dtype)
        keys = normal(rng, 2, 1, 20, dtype=dtype)
        if what != "equal keys":
            (q if what == "zero queries" else keys).raw.fill(0)
        keys = DenseArray(np.repeat(keys.raw, 700, axis=1), dtype)
        scores, slots = scanned(q, keys, 15, parts=[slice(0, 700)])
        assert (slots == np.arange(15)).all()
        wanted = in_64(q) @ in_64(keys)[:, :15].transpose(0, 2, 1)
        np.testing.assert_allclose(scores, wanted, atol=1e-4)


@pytest.mark.parametrize("dtype", list(Dtype))
def test_threads_change_nothing(isa: str, dtype: Dtype) -> None:
    """Two servers with different numbers of threads answer the same call differently."""
    rng = np.random.default_rng(4)
    for heads, count, rows in ((1, 1, 40_000), (2, 3, 9_000), (1, 300, 2_000), (3, 70, 900)):
        q, keys = normal(rng, heads, count, 48, dtype=dtype), normal(rng, heads, rows, 48, dtype=dtype)
        answers = []
        for threads in (1, 2, 3, 5):
            kernels.use_threads(threads)
            answers.append(scanned(q, keys, 16, parts=[slice(0, rows)]))
        kernels.use_threads(1)
        for scores, slots in answers[1:]:
            # Few queries are multiplied in another order than many: how work is cut may round otherwise.
            np.testing.assert_allclose(scores, answers[0][0], rtol=1e-5, atol=1e-5)
            assert (slots == answers[0][1]).mean() > 0.999


@pytest.mark.parametrize("count", [1, 3, 8])
def test_every_half_precision_number(isa: str, count: int) -> None:
    """A subnormal, the largest or the smallest number is widened to another one."""
    for dtype, top in ((Dtype.FLOAT16, 0x7C00), (Dtype.BFLOAT16, 0x7F80)):
        bits = np.arange(top, dtype=np.uint16)
        bits = np.concatenate([bits, bits | np.uint16(0x8000)])
        raw: Raw = bits.view(np.float16) if dtype is Dtype.FLOAT16 else bits
        for dim in (1, 16):  # one by one, and as vectors
            keys = DenseArray(np.ascontiguousarray(raw.reshape(1, -1, dim)), dtype)
            rows = keys.shape[1]
            q = np.zeros((1, count, dim), np.float32)
            q[..., rows % dim] = 1
            scores, slots = scanned(from_float32(q, Dtype.FLOAT32), keys, rows, parts=[slice(0, rows)])
            wanted = keys.float32()[0, :, rows % dim]
            for n in range(count):
                assert sorted(slots[0, n]) == list(range(rows))
                np.testing.assert_array_equal(scores[0, n], wanted[slots[0, n]])


def test_what_float32_cannot_hold(isa: str) -> None:
    """An overflowing product hides the entries that have a score."""
    keys = np.zeros((1, 40, 16), np.float32)
    keys[0, :, 0] = np.arange(40)
    keys[0, 7, 0], keys[0, 9, 0] = -3e38, 3e38
    for count in (1, 5):
        q = np.zeros((1, count, 16), np.float32)
        q[..., 0] = 1e10
        wide = [from_float32(array, Dtype.FLOAT32) for array in (q, keys)]
        found = scanned(wide[0], wide[1], 40, parts=[slice(0, 40)])
        for scores, slots in zip(found[0][0], found[1][0], strict=True):
            assert slots[0] == 9
            assert np.isposinf(scores[0])
            assert slots[-1] == -1  # the score -inf is no entry
            assert sorted(slots[:-1]) == [slot for slot in range(40) if slot != 7]


@pytest.mark.parametrize("dtype", STORED)
@pytest.mark.parametrize(("top_k", "dim"), [(1, 1), (5, 16), (33, 70)])
def test_attend(isa: str, threads: int, dtype: Dtype | ValueDtype, top_k: int, dim: int) -> None:
    """The output is another one than softmax(scale * scores) v, or slots that are not there count."""
    rng = np.random.default_rng(5)
    heads, count, rows = 2, 150, 90
    values, values_in_64 = stored(rng, heads, rows, dim, dtype=dtype)
    scores = (3 * rng.standard_normal((heads, count, top_k))).astype(np.float32)
    slots = rng.integers(rows, size=scores.shape)
    slots[:, ::3, top_k // 2 :] = -1
    slots[:, 7] = -1
    scores[slots < 0] = -np.inf
    scores[0, 8] *= 100  # only one entry has any weight
    output, lse = (
        np.full((heads, count, dim), np.nan, np.float32),
        np.full((heads, count), np.nan, np.float32),
    )
    kernels.attend(scores, slots, values, dtype=dtype, scale=0.7, output=output, lse=lse)
    p, wanted_lse = softmax(np.float64(np.float32(0.7)) * scores.astype(np.float64), slots >= 0)
    chosen = values_in_64[np.arange(heads)[:, None, None], slots]
    np.testing.assert_allclose(output, np.einsum("htk,htkd->htd", p, chosen), atol=2e-5)
    np.testing.assert_allclose(lse, wanted_lse, rtol=1e-5, atol=1e-5)
    empty = (slots < 0).all(axis=-1)
    assert not output[empty].any()
    assert np.isneginf(lse[empty]).all()


def test_what_has_no_weight_brings_nothing(isa: str) -> None:
    """A value near the largest number shows through, though its score is out of all reach of the best one."""
    scores = np.array([[[0.0, -1000.0]]], np.float32)
    slots = np.array([[[0, 1]]], np.int64)
    values = np.array([[[1.0], [3e38]]], np.float32)
    output, lse = np.empty((1, 1, 1), np.float32), np.empty((1, 1), np.float32)
    kernels.attend(scores, slots, values, dtype=Dtype.FLOAT32, scale=1.0, output=output, lse=lse)
    assert (output.item(), lse.item()) == (1.0, 0.0)


def softmax(scores: Float64, present: NDArray[np.bool_]) -> tuple[Float64, Float64]:
    """Probabilities [..., K] and LSE [...]."""
    scores = np.where(present, scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True, initial=-np.inf)
    weights = np.exp(scores - np.where(np.isneginf(top), 0.0, top))
    total = weights.sum(axis=-1)
    with np.errstate(divide="ignore"):
        lse: Float64 = np.where(total > 0, top[..., 0] + np.log(total), -np.inf)
    return weights / np.where(total > 0, total, 1.0)[..., None], lse


@pytest.mark.parametrize(
    ("dtype", "of_values"), [*((each, each) for each in Dtype), *((each, ValueDtype.INT8) for each in Dtype)]
)
@pytest.mark.parametrize("with_lse", [False, True])
@pytest.mark.parametrize(("top_k", "key_dim", "value_dim"), [(1, 1, 1), (6, 16, 33), (20, 50, 8)])
def test_attend_backward(
    isa: str,
    threads: int,
    dtype: Dtype,
    of_values: Dtype | ValueDtype,
    with_lse: bool,
    top_k: int,
    key_dim: int,
    value_dim: int,
) -> None:
    """The gradient is another one than the softmax's Jacobian gives, written out."""
    rng = np.random.default_rng(6)
    heads, count, rows, scale = 2, 130, 60, 0.4
    keys = normal(rng, heads, rows, key_dim, dtype=dtype)
    values, values_in_64 = stored(rng, heads, rows, value_dim, dtype=of_values)
    q, go = normal(rng, heads, count, key_dim), normal(rng, heads, count, value_dim)
    glse = normal(rng, heads, count).float32() if with_lse else None
    slots = rng.integers(rows, size=(heads, count, top_k))
    slots[:, ::4, top_k // 2 :] = -1
    slots[:, 5] = -1
    came = kernels.attend_backward(
        q.float32(),
        slots,
        keys.raw,
        values,
        spec=spec_of(of_values, dtype),
        scale=scale,
        grad_output=go.float32(),
        grad_lse=glse,
    )
    head = np.arange(heads)[:, None, None]
    k, v = in_64(keys)[head, slots], values_in_64[head, slots]
    p, _ = softmax(scale * np.einsum("htd,htkd->htk", in_64(q), k), slots >= 0)
    jacobian = np.einsum("htk,kl->htkl", p, np.eye(top_k)) - p[..., :, None] * p[..., None, :]
    ds = np.einsum("htd,htkd,htkl->htl", in_64(go), v, jacobian)
    ds += 0.0 if glse is None else p * glse[..., None]
    np.testing.assert_allclose(came, scale * np.einsum("htk,htkd->htd", ds, k), atol=1e-4)
    assert not came[:, 5].any()


@pytest.mark.parametrize(
    ("dtype", "of_values"), [*((each, each) for each in Dtype), (Dtype.FLOAT16, ValueDtype.INT8)]
)
@pytest.mark.parametrize("count", [1, 3, 9])
def test_several_banks_at_once(
    isa: str, threads: int, dtype: Dtype, of_values: Dtype | ValueDtype, count: int
) -> None:
    """What is found for one bank is another one's, or its values are."""
    rng = np.random.default_rng(8)
    sizes, heads, dim, top_k = (300, 1, 77, 500), 3, 40, 12
    live = [[slice(10, 300)], [], [slice(40, 77), slice(0, 31)], [slice(3, 10), slice(500, 500)]]
    q = normal(rng, len(sizes), heads, count, dim, dtype=dtype)
    keys = [normal(rng, heads, size, dim, dtype=dtype) for size in sizes]
    values = [stored(rng, heads, size, 24, dtype=of_values) for size in sizes]
    output, lse, slots = kernel_rows.attend_rows(
        q.raw,
        [
            kernel_rows.Row(kernel_rows.Place.of(k.raw, v[0]), parts)
            for k, v, parts in zip(keys, values, live, strict=True)
        ],
        query_dtype=dtype,
        spec=spec_of(of_values, dtype, value_dim=24),
        top_k=top_k,
        scale=0.3,
    )
    for row, parts in enumerate(live):
        places = np.concatenate([np.arange(0), *(np.arange(part.start, part.stop) for part in parts)])
        products = in_64(q.row(row)) @ in_64(keys[row])[:, places].swapaxes(1, 2)
        best = np.argsort(-products, axis=-1)[..., :top_k]
        found = best.shape[-1]
        np.testing.assert_array_equal(slots[row][..., :found], places[best])
        assert (slots[row][..., found:] == -1).all()
        scores = np.float64(np.float32(0.3)) * np.take_along_axis(products, best, axis=-1)
        p, wanted_lse = softmax(scores, np.ones(scores.shape, dtype=bool))
        chosen = values[row][1][np.arange(heads)[:, None, None], places[best]]
        np.testing.assert_allclose(output[row], np.einsum("htk,htkd->htd", p, chosen), atol=2e-5)
        np.testing.assert_allclose(lse[row], wanted_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", list(Dtype))
def test_gather(threads: int, dtype: Dtype) -> None:
    """A hit brings another entry's key, or one that is not there brings anything at all."""
    rng = np.random.default_rng(7)
    for dim, count in ((1, 1), (5, 1023), (64, 5000)):
        rows = normal(rng, 300, dim, dtype=dtype).raw
        slots = rng.integers(-1, 300, size=(count, 2))
        into = np.ones((count, 2, dim), rows.dtype)
        kernels.gather(rows, slots, into, dtype=dtype, to_dtype=dtype)
        wanted = rows[slots]
        wanted[slots < 0] = 0
        np.testing.assert_array_equal(into, wanted)


@pytest.mark.parametrize("dtype", [Dtype.FLOAT16, Dtype.BFLOAT16])
def test_gather_widens(isa: str, dtype: Dtype) -> None:
    """A fetched element is not the number that was stored, or what is not there is not 0."""
    torch_dtype = torch.float16 if dtype is Dtype.FLOAT16 else torch.bfloat16
    halves = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch_dtype)
    halves = halves[halves.isfinite()]
    for dim in (1, 7, 64):
        rows = halves[: len(halves) // dim * dim].reshape(-1, dim)
        slots = np.random.default_rng(7).permutation(len(rows))
        slots[::5] = -1
        into = np.ones((len(rows), dim), np.float32)
        stored_rows: Raw = rows.view(torch.int16).numpy().view(np.dtype(RAW_TYPES[dtype]))
        kernels.gather(stored_rows, slots, into, dtype=dtype, to_dtype=Dtype.FLOAT32)
        wanted = rows.float().numpy()[slots]
        wanted[slots < 0] = 0
        np.testing.assert_array_equal(into.view(np.uint32), wanted.view(np.uint32))


def test_accumulate(isa: str) -> None:
    """The centroid of a list is not the mean of its keys."""
    rng = np.random.default_rng(8)
    rows, assigned = normal(rng, 400, 21).float32(), rng.integers(-1, 7, size=400)
    sums, counts = np.zeros((7, 21)), np.zeros(7, np.int64)
    for part in (slice(0, 150), slice(150, 400)):
        kernels.accumulate(rows[part], assigned[part], sums, counts)
    for number in range(7):
        np.testing.assert_allclose(sums[number], rows[assigned == number].astype(np.float64).sum(axis=0))
    assert counts.tolist() == np.bincount(assigned[assigned >= 0], minlength=7).tolist()
