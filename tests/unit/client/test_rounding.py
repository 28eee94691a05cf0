"""Floats to the wire's formats and back, compiled and by NumPy, against NumPy and torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from recollect import _rounding
from recollect._bits import to_bits, to_float32
from recollect._int8 import to_rows
from recollect.errors import InvalidArgumentError
from recollect_server.domain import int8_rows
from recollect_server.engine import kernels

SIZES = [_rounding.FEWEST - 1, *(_rounding.FEWEST + more for more in range(9)), 100_003]
"""Some too few for a call, some that no vector ends with."""


@pytest.fixture(params=["compiled", "numpy"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With what is compiled, and as where there is no compiler."""
    if request.param == "numpy":
        monkeypatch.setattr(_rounding, "LIBRARY", Path("/nonexistent"))
    elif not kernels.available():
        pytest.skip("nothing is compiled here")
    _rounding.library.cache_clear()
    assert (_rounding.library() is None) == (request.param == "numpy")
    yield
    _rounding.library.cache_clear()


def of_any_bits(size: int) -> npt.NDArray[np.float32]:
    """Float32 of all sizes, infinite ones and such that are no number among them."""
    return np.random.default_rng(size).integers(0, 2**32, size, dtype=np.uint32).view(np.float32)


@pytest.mark.parametrize("size", SIZES)
def test_float16_rounds_as_numpy_does(size: int) -> None:
    """Other keys are stored than the user's, rounded once: searches find other entries."""
    values = of_any_bits(size)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(to_bits(values, "float16"), values.astype(np.float16))


def test_float16_of_ties_and_at_the_ends_of_its_range() -> None:
    """What lies between two float16 goes to the wrong one, or what is just not too large becomes infinite."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    ties = (halves[:-1] + halves[1:]) / 2
    below, above = np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(np.inf))
    even = np.where(np.arange(ties.size) % 2 == 0, halves[:-1], halves[1:])
    for values, expected in ((ties, even), (below, halves[:-1]), (above, halves[1:])):
        np.testing.assert_array_equal(to_bits(-values, "float16").astype(np.float32), -expected)
    ends = np.resize(np.array([65519.996, 65520.0], np.float32), SIZES[-1])
    np.testing.assert_array_equal(to_bits(ends, "float16")[:2], np.array([65504, np.inf], np.float16))


@pytest.mark.parametrize("size", SIZES)
def test_bfloat16_rounds_as_torch_does(size: int) -> None:
    """NumPy users store other bfloat16 values than torch users."""
    values = of_any_bits(size)
    ours = torch.from_numpy(to_bits(values, "bfloat16").view(np.int16)).view(torch.bfloat16)
    theirs = torch.from_numpy(values.copy()).to(torch.bfloat16)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("flushes", [False, True])
def test_every_float16_is_widened_as_it_is(flushes: bool) -> None:
    """Results are not what was stored; where torch takes small numbers for 0, small ones are lost."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    expected = halves.astype(np.float32)
    torch.set_flush_denormal(flushes)
    try:
        widened = to_float32(halves).view(np.uint32)
        rounded = to_bits(expected, "float16")
    finally:
        torch.set_flush_denormal(False)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(widened[numbers], expected.view(np.uint32)[numbers])
    assert np.isnan(widened.view(np.float32)[~numbers]).all()
    np.testing.assert_array_equal(rounded.view(np.uint16)[numbers], halves.view(np.uint16)[numbers])


def test_layouts_do_not_matter() -> None:
    """A transposed or sliced array, or one of another byte order, is converted in the order of its memory."""
    values = np.arange(64 * 96, dtype=np.float32).reshape(64, 96) / 7
    for array in (values.T, values[::-1, ::2], values.astype(">f4")):
        np.testing.assert_array_equal(to_bits(array, "float16"), array.astype(np.float16))
        expected = torch.from_numpy(array.astype(np.float32)).bfloat16().view(torch.int16).numpy()
        np.testing.assert_array_equal(to_bits(array, "bfloat16").view(np.int16), expected)
        halves = array.astype(np.float16)[:, ::-1]
        np.testing.assert_array_equal(to_float32(halves), halves.astype(np.float32))


@pytest.mark.parametrize("dim", [1, 3, 16, 17, 64, 130])
def test_rows_of_integers_are_those_that_the_server_makes(dim: int) -> None:
    """A query is rounded in one way here and a value in another there, or depends on what was compiled."""
    values = of_any_bits(400 * dim).reshape(20, 20, dim)
    values = np.where(np.isfinite(values), values, np.float32(0))
    values[3] = 0
    values[4] *= np.float32(0.5) ** np.arange(dim)
    np.testing.assert_array_equal(to_rows("queries", values), int8_rows.pack(values))
    turned = np.ascontiguousarray(values.swapaxes(0, 1)).swapaxes(0, 1)  # not contiguous
    np.testing.assert_array_equal(to_rows("queries", turned), int8_rows.pack(values))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_of_integers_cannot_say_what_is_no_number(bad: float) -> None:
    """NaN travels as some integer, and what is found for it is answered."""
    for at in (0, 5, 36):
        values = np.ones((9, 37), np.float32)
        values[-1, at] = bad
        with pytest.raises(InvalidArgumentError, match="queries holds NaN or infinite"):
            to_rows("queries", values)
