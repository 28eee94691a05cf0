"""Keys that the compiled kernels scan, and what NumPy says of what they find."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recollect_server.domain import int8_rows
from recollect_server.domain.arrays import DenseArray, Float32, Int64, Raw, RowBytes, from_float32
from recollect_server.domain.spec import Dtype, NamespaceSpec, ValueDtype
from recollect_server.engine import kernels

Float64 = NDArray[np.float64]


def normal(rng: np.random.Generator, *shape: int, dtype: Dtype = Dtype.FLOAT32) -> DenseArray:
    """Drawn from a normal distribution."""
    return from_float32(rng.standard_normal(shape).astype(np.float32), dtype)


def in_64(array: DenseArray) -> Float64:
    """The values in float64."""
    return array.float32().astype(np.float64)


STORED: list[Dtype | ValueDtype] = [*Dtype, ValueDtype.INT8]
"""What values are stored in."""


def stored(
    rng: np.random.Generator, *shape: int, dtype: Dtype | ValueDtype
) -> tuple[Raw | RowBytes, Float64]:
    """Values as they are stored, drawn from a normal distribution; and the same in float64."""
    if isinstance(dtype, Dtype):
        values = normal(rng, *shape, dtype=dtype)
        return values.raw, in_64(values)
    rows = int8_rows.pack(normal(rng, *shape).float32())
    steps = np.frombuffer(rows[..., shape[-1] :].tobytes(), np.float32).reshape(*shape[:-1], 1)
    integers: NDArray[np.int8] = rows[..., : shape[-1]].view(np.int8)
    return rows, integers.astype(np.float64) * steps


def spec_of(stored: Dtype | ValueDtype, dtype: Dtype, *, value_dim: int = 1) -> NamespaceSpec:
    """With keys of `dtype` and values that are stored otherwise, or not."""
    of_values = stored if isinstance(stored, ValueDtype) else None
    return NamespaceSpec((0,), 1, 1, value_dim, capacity=1, dtype=dtype, value_dtype=of_values)


def scanned(
    queries: DenseArray,
    keys: DenseArray,
    top_k: int,
    *,
    parts: Sequence[slice],
    bias: Float32 | None = None,
) -> tuple[Float32, Int64]:
    """Scores and slots [heads, n, K]."""
    heads, count, _ = queries.shape
    best = kernels.Best(heads * count, top_k)
    for rows in parts:
        kernels.scan(
            best,
            queries.raw,
            keys.raw,
            query_dtype=queries.dtype,
            key_dtype=keys.dtype,
            rows=rows,
            bias=bias,
        )
    scores, slots = best.ordered()
    return scores.reshape(heads, count, top_k), slots.reshape(heads, count, top_k)


def check(
    found: tuple[Float32, Int64],
    queries: DenseArray,
    keys: DenseArray,
    *,
    parts: Sequence[slice],
    bias: Float32 | None = None,
) -> None:
    """Slots must be distinct, live and among the best; scores theirs, descending; the rest padding."""
    scores, slots = found
    live = np.concatenate([np.arange(part.start, part.stop) for part in parts])
    real = in_64(queries) @ in_64(keys).transpose(0, 2, 1)
    sizes = np.abs(in_64(queries)) @ np.abs(in_64(keys)).transpose(0, 2, 1)
    if bias is not None:
        real, sizes = real + bias, sizes + np.abs(bias)
    count = min(live.size, slots.shape[-1])
    assert (slots[..., count:] == -1).all()
    assert np.isneginf(scores[..., count:]).all()
    assert np.isin(slots[..., :count], live).all()
    assert (np.diff(np.sort(slots[..., :count], axis=-1), axis=-1) > 0).all(), "the same slot twice"
    assert (np.diff(scores[..., :count], axis=-1) <= 0).all(), "not in order"
    error = 2.0**-21 * np.sqrt(queries.shape[-1]) * sizes.max() + 1e-37
    mine = np.take_along_axis(real, slots[..., :count], axis=-1)
    np.testing.assert_allclose(scores[..., :count], mine, rtol=0, atol=error)
    wanted = -np.sort(-real[..., live], axis=-1)[..., :count]
    np.testing.assert_allclose(scores[..., :count], wanted, rtol=0, atol=error)
