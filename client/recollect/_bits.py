"""Floating-point formats as NumPy arrays: bfloat16 is held as its bits in uint16.

Rounding is to nearest, ties to even, in one step from the source's format.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from recollect import _rounding
from recollect._results import Dtype

# A tensor as it travels: little-endian float32, float16, or the uint16 bits of bfloat16.
Wire = npt.NDArray[np.float32 | np.float16 | np.uint16]
Floats = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]

WIRE_DTYPES: dict[Dtype, np.dtype[np.float32 | np.float16 | np.uint16]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
}
# The largest finite value of each.
LARGEST: dict[Dtype, float] = {
    "float32": 3.4028234663852886e38,
    "float16": 65504.0,
    "bfloat16": 3.3895313892515355e38,
}

_FLOAT16_INF, _FLOAT16_MINUS_INF = 0x7C00, 0xFC00
_BFLOAT16_INF = 0x7F80
_BFLOAT16_NAN = 0x7FC0


def to_bits(values: Floats, dtype: Dtype) -> Wire:
    """`values` in a wire format; a view where they already are. What is too large becomes infinite."""
    if dtype == "bfloat16":
        return _to_bfloat16(values)
    wire = WIRE_DTYPES[dtype]
    if values.dtype == wire:
        return cast("Wire", values)
    if dtype == "float16" and values.dtype == np.float32:
        rounded = _rounding.to_float16(cast("npt.NDArray[np.float32]", values))
        if rounded is not None:
            return rounded
    with np.errstate(over="ignore", under="ignore"):
        return values.astype(wire)


def from_bits(bits: Wire, dtype: Dtype) -> Floats:
    """The values of a wire array; a view except for bfloat16, which becomes float32."""
    if dtype == "bfloat16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return cast("Floats", bits)


def to_float32(halves: npt.NDArray[np.float16]) -> npt.NDArray[np.float32]:
    """The same values."""
    widened = _rounding.from_float16(halves)
    return halves.astype(np.float32) if widened is None else widened


def has_infinite(bits: Wire, dtype: Dtype) -> bool:
    """Whether any element is infinite."""
    if dtype == "bfloat16":
        return bool(((bits.view(np.uint16) & 0x7FFF) == _BFLOAT16_INF).any())
    if dtype == "float16" and _all_finite(cast("npt.NDArray[np.float16]", bits)):
        return False
    return bool(np.isinf(bits).any())


def _all_finite(halves: npt.NDArray[np.float16]) -> bool:
    # What is infinite or NaN has the largest bits of its sign. To look at each takes ten times as long.
    return bool(
        halves.view(np.int16).max(initial=0) < _FLOAT16_INF
        and halves.view(np.uint16).max(initial=0) < _FLOAT16_MINUS_INF
    )


def _to_bfloat16(values: Floats) -> npt.NDArray[np.uint16]:
    if values.dtype == np.float32:
        rounded = _rounding.to_bfloat16(cast("npt.NDArray[np.float32]", values))
        if rounded is not None:
            return rounded
    nan = np.isnan(values)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        single = values.astype("<f4")  # always a copy: its bits are changed below
    bits = single.view("<u4")
    if values.dtype.itemsize > 4:
        # Rounding twice to nearest is not rounding once. Round to odd first: the discarded part then
        # stays visible in the last bit, and the second rounding sees on which side of a tie it is.
        wide = single.astype(np.float64)
        inexact = wide != values
        bits -= np.abs(wide) > np.abs(values)
        bits |= inexact
    bits += 0x7FFF + ((bits >> 16) & 1)
    halves = (bits >> 16).astype("<u2")
    halves[nan] = _BFLOAT16_NAN  # a carry may have run over the sign
    return halves
