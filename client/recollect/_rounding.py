"""Compiled conversions of floats (`native/rounding.cpp`), with arrays in place of pointers.

NumPy's own of float16 take one number after the other: ten times as long. Where the package was built without
a C++ compiler they are what there is. Calls release the interpreter lock.
"""

from __future__ import annotations

import ctypes
import math
from ctypes import c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

LIBRARY = Path(__file__).with_name("_native.so")

STEP_BYTES = 4
"""Behind the integers of a row: the float32 that they are times."""

FEWEST = 2048
"""Of fewer, NumPy's own conversion takes less time than a call of the library."""

Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
UInt16 = npt.NDArray[np.uint16]
Scalar = TypeVar("Scalar", bound=np.generic)


@cache
def library() -> ctypes.CDLL | None:
    """The functions of `native/rounding.cpp`, loaded once; None where there are none for this processor."""
    try:
        library = ctypes.CDLL(str(LIBRARY))
        for name in ("rc_to_float16", "rc_from_float16", "rc_to_bfloat16"):
            function = getattr(library, name)
            function.argtypes, function.restype = (c_void_p, c_int64, c_void_p), None
        library.rc_to_int8.argtypes = (c_void_p, c_int64, c_int64, c_void_p)
        return library if library.rc_can_round() else None
    except (AttributeError, OSError):  # not there, or of another platform
        return None


def to_float16(values: Float32) -> Float16 | None:
    """Rounds to nearest, ties to even; what is too large becomes infinite. None: let NumPy do it."""
    return _converted("rc_to_float16", values, np.dtype(np.float16))


def from_float16(halves: Float16) -> Float32 | None:
    """The same values. None: let NumPy do it."""
    return _converted("rc_from_float16", halves, np.dtype(np.float32))


def to_bfloat16(values: Float32) -> UInt16 | None:
    """Bits of bfloat16, rounded to nearest, ties to even. None: let NumPy do it."""
    return _converted("rc_to_bfloat16", values, np.dtype(np.uint16))


def to_int8(values: Float32) -> tuple[UInt8, bool] | None:
    """Values [..., D] as rows [..., D + STEP_BYTES], and whether all are numbers. None: let NumPy do it."""
    loaded = library()
    if loaded is None or not values.dtype.isnative:
        return None
    *shape, dim = values.shape
    dense, rows = np.ascontiguousarray(values), np.empty((*shape, dim + STEP_BYTES), np.uint8)
    are_numbers = loaded.rc_to_int8(_address(dense), math.prod(shape), dim, _address(rows))
    return rows, bool(are_numbers)


def _converted(
    function: str, array: npt.NDArray[np.generic], dtype: np.dtype[Scalar]
) -> npt.NDArray[Scalar] | None:
    if array.size < FEWEST or not array.dtype.isnative:
        return None
    loaded = library()
    if loaded is None:
        return None
    dense, into = np.ascontiguousarray(array), np.empty(array.shape, dtype)
    getattr(loaded, function)(_address(dense), dense.size, _address(into))
    return into


def _address(array: npt.NDArray[np.generic]) -> int:
    at: int = array.__array_interface__["data"][0]
    return at
