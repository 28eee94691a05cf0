"""Arrays as they travel and as they are stored: float32, float16, or bfloat16 kept as its bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from recollect_server.domain.spec import Dtype

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Raw = NDArray[np.float32 | np.float16 | np.uint16]
RowBytes = NDArray[np.uint8]

RAW_TYPES: dict[Dtype, type[np.float32] | type[np.float16] | type[np.uint16]] = {
    Dtype.FLOAT32: np.float32,
    Dtype.FLOAT16: np.float16,
    Dtype.BFLOAT16: np.uint16,
}
"""The NumPy type that holds the elements; NumPy has no bfloat16, so its bits stand for it."""

Scalar = TypeVar("Scalar", bound=np.generic)

LINE_BYTES = 64
"""Of the processor's caches. What is read row by row begins with one: else each row lies in one more."""

EXPONENT_BITS: dict[Dtype, np.uint32 | np.uint16] = {
    Dtype.FLOAT32: np.uint32(0x7F80_0000),
    Dtype.FLOAT16: np.uint16(0x7C00),
    Dtype.BFLOAT16: np.uint16(0x7F80),
}
"""All exponent bits set: NaN or infinite, in each format."""

LARGEST = {
    Dtype.FLOAT32: 3.4028234663852886e38,
    Dtype.FLOAT16: 65504.0,
    Dtype.BFLOAT16: 3.3895313892515355e38,
}
"""The largest number of each."""

SIGNLESS_BITS: dict[Dtype, np.uint32 | np.uint16] = {
    Dtype.FLOAT32: np.uint32(0x7FFF_FFFF),
    Dtype.FLOAT16: np.uint16(0x7FFF),
    Dtype.BFLOAT16: np.uint16(0x7FFF),
}


@dataclass(frozen=True, slots=True)
class DenseArray:
    """Elements and what their bits mean."""

    raw: Raw
    dtype: Dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return self.raw.shape

    def row(self, index: int) -> DenseArray:
        """One batch row; a view."""
        return DenseArray(self.raw[index], self.dtype)

    def float32(self) -> Float32:
        """The values in float32, contiguous; a view where they are so already."""
        return to_float32(self.raw, self.dtype)

    def largest(self) -> float:
        """The largest absolute value, 0 of none; NaN or infinite if there is such an element."""
        # Without its sign, a float orders as the integer that its bits are: so does one above 0 with it, and
        # one below 0 with it as an unsigned number. Two maxima make no array of bits without signs.
        signless = SIGNLESS_BITS[self.dtype]
        unsigned = self.raw.view(signless.dtype)
        signed = unsigned.view(np.dtype(f"i{signless.itemsize}"))
        bits = max(int(signed.max(initial=0)), int(unsigned.max(initial=0)) & int(signless))
        return float(to_float32(np.array([bits], signless.dtype).view(RAW_TYPES[self.dtype]), self.dtype)[0])

    def nonfinite(self) -> NDArray[np.bool_]:
        """True where an element is NaN or infinite."""
        exponent = EXPONENT_BITS[self.dtype]
        return np.asarray((self.raw.view(exponent.dtype) & exponent) == exponent)


def dtype_in(raw: Raw, stored: Dtype) -> Dtype:
    """What an array for stored elements has: these, or float32 that they were widened to."""
    return Dtype.FLOAT32 if raw.dtype == np.float32 else stored


def to_float32(raw: Raw, dtype: Dtype) -> Float32:
    """Widens stored elements; exact in each format."""
    if dtype is Dtype.BFLOAT16:
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return np.ascontiguousarray(raw, dtype=np.float32)


def from_float32(values: Float32, dtype: Dtype) -> DenseArray:
    """Rounds to nearest, ties to even."""
    if dtype is Dtype.BFLOAT16:
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return DenseArray((rounded >> np.uint32(16)).astype(np.uint16), dtype)
    if dtype is Dtype.FLOAT16:
        return DenseArray(values.astype(np.float16), dtype)
    return DenseArray(np.ascontiguousarray(values), dtype)


class Room:
    """Memory that arrays are laid out in, one after the other.

    Args:
        memory: Bytes [n]; not cleared.
    """

    def __init__(self, memory: NDArray[np.uint8]) -> None:
        self.memory = memory
        self._used = 0

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Scalar]) -> NDArray[Scalar]:
        """The next array.

        Raises:
            MemoryError: There is no room for it.
        """
        size_bytes = math.prod(shape) * dtype.itemsize
        if size_bytes > self.memory.size - self._used:
            raise MemoryError(f"{size_bytes} bytes after {self._used} of {self.memory.size}")
        array = self.memory[self._used : self._used + size_bytes].view(dtype).reshape(shape)
        self._used = min(self.memory.size, -(-(self._used + size_bytes) // LINE_BYTES) * LINE_BYTES)
        return array

    def offset_of(self, array: NDArray[np.generic]) -> int | None:
        """Where an array lies here; None if it lies elsewhere."""
        offset = array.ctypes.data - self.memory.ctypes.data
        return offset if 0 <= offset <= self.memory.size - array.nbytes else None
