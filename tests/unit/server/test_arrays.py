"""Formats of numbers as bits, against torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recollect_server.domain.arrays import RAW_TYPES, DenseArray, from_float32, to_float32
from recollect_server.domain.spec import Dtype

TORCH = {Dtype.FLOAT32: torch.float32, Dtype.FLOAT16: torch.float16, Dtype.BFLOAT16: torch.bfloat16}
floats = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20)


@pytest.mark.parametrize("dtype", list(Dtype))
@given(values=floats)
def test_rounding_is_torchs(dtype: Dtype, values: list[float]) -> None:
    """Outputs are rounded otherwise than to nearest even."""
    single = np.array(values, dtype=np.float32)
    with np.errstate(over="ignore"):
        came = from_float32(single, dtype).float32()
    wanted = torch.tensor(values, dtype=torch.float32).to(TORCH[dtype]).float().numpy()
    np.testing.assert_array_equal(came, wanted)


@pytest.mark.parametrize("dtype", [Dtype.FLOAT16, Dtype.BFLOAT16])
def test_every_half_survives_widening(dtype: Dtype) -> None:
    """A stored number is not the number that is searched."""
    bits = np.arange(2**16, dtype=np.uint16)
    wide = to_float32(bits.view(RAW_TYPES[dtype]), dtype)
    wanted = torch.from_numpy(bits.view(np.int16).copy()).view(TORCH[dtype]).float().numpy()
    np.testing.assert_array_equal(wide, wanted)


@pytest.mark.parametrize("dtype", [Dtype.FLOAT16, Dtype.BFLOAT16])
def test_every_nonfinite_half_is_found(dtype: Dtype) -> None:
    """NaN or infinity gets into a bank, or a number is taken for one."""
    bits = np.arange(2**16, dtype=np.uint16)
    array = DenseArray(bits.view(RAW_TYPES[dtype]), dtype)
    wanted = ~torch.from_numpy(bits.view(np.int16).copy()).view(TORCH[dtype]).isfinite().numpy()
    np.testing.assert_array_equal(array.nonfinite(), wanted)
    alone = [DenseArray(array.raw[[i]], dtype).largest() for i in range(len(bits))]
    np.testing.assert_array_equal(np.isfinite(alone), ~wanted)


@pytest.mark.parametrize("number", [np.nan, -np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, -0.0, 0.0])
def test_every_nonfinite_number_is_found(number: float) -> None:
    """NaN or infinity gets into a bank in the middle of others, or a number is taken for one."""
    among = np.linspace(-2, 2, 999, dtype=np.float32)
    among[500] = number
    array = DenseArray(among.reshape(3, -1), Dtype.FLOAT32)
    assert np.isfinite(array.largest()) == bool(np.isfinite(among).all())
    assert DenseArray(array.raw[:0], Dtype.FLOAT32).largest() == 0


@pytest.mark.parametrize("dtype", list(Dtype))
@given(values=floats)
def test_the_largest_element(dtype: Dtype, values: list[float]) -> None:
    """A key so large that scores overflow is not noticed."""
    array = DenseArray(
        from_float32(np.clip(np.array(values, dtype=np.float32), -60000, 60000), dtype).raw, dtype
    )
    assert array.largest() == float(np.abs(array.float32()).max())


def test_float32_is_not_copied() -> None:
    """A large bank is copied on each search."""
    raw = np.ones((4, 4), dtype=np.float32)
    assert np.shares_memory(DenseArray(raw, Dtype.FLOAT32).float32(), raw)
