"""Values as integers of 8 bits: how far they are off; kernels and NumPy make the same of them."""

from __future__ import annotations

import numpy as np
import pytest

from recollect_server.domain import int8_rows
from recollect_server.domain.arrays import RAW_TYPES, DenseArray, Float32, from_float32
from recollect_server.domain.spec import STEP_BYTES, Dtype, ValueDtype
from recollect_server.engine import kernels
from tests.unit.server.scanned_keys import Float64, stored

compiled = pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")

DIMS = (1, 3, 16, 17, 64, 130)


def odd_values(dim: int) -> Float32:
    """Rows [n, dim] of every size that a float32 can have, with zeroes, halves of steps, one large one."""
    rng = np.random.default_rng(dim)
    rows = rng.standard_normal((300, dim)) * 2.0 ** rng.integers(-149, 120, size=(300, 1))
    rows[::7] = 0
    rows[1::7, 0] = np.finfo(np.float32).max
    rows[2::7] = np.rint(rows[2::7] / np.abs(rows[2::7]).max(axis=1, keepdims=True) * 254) / 2
    rows[2::7, 0] = -127  # the step is 1, and many lie in the middle between two of them
    rows[3::7] = 2.0**-149 * rng.integers(-200, 201, size=rows[3::7].shape)
    return rows.astype(np.float32)


@pytest.mark.parametrize("dim", DIMS)
def test_no_element_is_off_by_more_than_half_a_step(dim: int) -> None:
    """A stored value is another one than was added, or its largest element is not kept."""
    values = odd_values(dim)
    rows = int8_rows.pack(values)
    assert rows.shape == (300, dim + STEP_BYTES)
    came = int8_rows.unpack(rows).astype(np.float64)
    largest = np.abs(values).max(axis=1, keepdims=True).astype(np.float64)
    # Of the smallest numbers there are, a step is itself rounded: up to a half of the least one.
    half = largest / 254 * (1 + 1e-6) + 127 * 2.0**-150
    assert (np.abs(came - values) <= half).all()
    normal = largest[:, 0] > 1e-35
    np.testing.assert_allclose(np.abs(came).max(axis=1)[normal], largest[normal, 0], rtol=1e-6)
    assert not came[largest[:, 0] == 0].any()
    assert not rows[largest[:, 0] == 0].any()


@compiled
@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("dim", DIMS)
def test_the_kernels_round_as_numpy_does(isa: str, threads: int, dtype: Dtype, dim: int) -> None:
    """What a bank holds depends on the processor, or on whether anything was compiled."""
    values = odd_values(dim) if dtype is Dtype.FLOAT32 else odd_values(dim).clip(-6e4, 6e4)
    given = from_float32(np.stack([values, values[::-1]]), dtype)
    np.testing.assert_array_equal(kernels.to_int8(given), int8_rows.pack(given.float32()))
    # Not contiguous: as the first tokens of a longer row come.
    part = DenseArray(given.raw[:, :250], dtype)
    np.testing.assert_array_equal(kernels.to_int8(part), int8_rows.pack(part.float32()))


def rounded(values: Float64, dtype: Dtype) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    """As stored elements, by NumPy."""
    return from_float32(values.astype(np.float32), dtype).raw


@compiled
@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("dim", DIMS)
def test_gather_gives_them_in_any_dtype(isa: str, threads: int, dtype: Dtype, dim: int) -> None:
    """A fetched value is not the one that is stored, or what is not there is not 0."""
    rng = np.random.default_rng(7)
    rows, in_64 = stored(rng, 300, dim, dtype=ValueDtype.INT8)
    slots = rng.integers(-1, 300, size=(700, 3))
    into = np.ones((700, 3, dim), RAW_TYPES[dtype])
    kernels.gather(rows, slots, into, dtype=ValueDtype.INT8, to_dtype=dtype)
    wanted = rounded(in_64[slots], dtype)
    wanted[slots < 0] = 0
    np.testing.assert_array_equal(into, wanted)


@compiled
@pytest.mark.parametrize("dtype", [Dtype.FLOAT16, Dtype.BFLOAT16])
def test_every_size_is_narrowed_to_the_nearest(isa: str, dtype: Dtype) -> None:
    """A number is rounded down, or away, or a small one is lost: with some instruction sets, or with all."""
    rng = np.random.default_rng(1)
    any_size = rng.integers(0, 2**32, size=60_000, dtype=np.uint32).view(np.float32)
    edges = np.arange(-(2**15), 2**15).astype(np.int16).view(np.float16)
    edges = edges[np.isfinite(edges)].astype(np.float32)
    middles = edges[:-1] / 2 + edges[1:] / 2  # exact: ties
    beyond = np.array([65519.99, 65520, 65536, 1e30, -1e30], np.float32)
    parts = (any_size[np.isfinite(any_size)], edges, middles, beyond)
    numbers: Float32 = np.concatenate(parts, dtype=np.float32)
    for dim in (1, 37, 64):
        rows = numbers[: len(numbers) // dim * dim].reshape(-1, dim)
        into = np.empty(rows.shape, RAW_TYPES[dtype])
        kernels.gather(rows, np.arange(len(rows)), into, dtype=Dtype.FLOAT32, to_dtype=dtype)
        with np.errstate(over="ignore"):
            np.testing.assert_array_equal(into.view(np.uint16), from_float32(rows, dtype).raw.view(np.uint16))
