"""Arrays in memory that ends where they end: who reads or writes past them crashes, or a sanitizer tells."""

from __future__ import annotations

import ctypes
import math
import mmap
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

Scalar = TypeVar("Scalar", bound=np.generic)

PAGE = mmap.PAGESIZE

_PROT_NONE = 0


class Exact:
    """NumPy as the kernels' functions use it, but for where arrays lie: set it in place of their `np`.

    One array lies before a page that nobody may touch, one behind such a page, and one in a block of the
    allocator's own that is just so large: sanitizers watch the bytes around that, but do not see every load.

    Args:
        rng: Which kind an array is.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def __getattr__(self, name: str) -> object:
        return getattr(np, name)

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
        """Not cleared, as a rule."""
        shape, kind = (shape,) if isinstance(shape, int) else shape, self.rng.integers(3)
        if kind == 0:
            return np.empty(shape, dtype)
        return _beside_a_guard(shape, np.dtype(dtype), before_it=kind == 1)

    def zeros(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[np.generic]:
        """See `numpy.zeros`."""
        return self.full(shape, 0, dtype)

    def full(self, shape: int | tuple[int, ...], value: float, dtype: DTypeLike) -> NDArray[np.generic]:
        """See `numpy.full`."""
        made = self.empty(shape, dtype)
        made.fill(value)
        return made

    def of(self, array: NDArray[Scalar]) -> NDArray[Scalar]:
        """A copy."""
        made = self.empty(array.shape, array.dtype)
        made[...] = array
        return made.view(array.dtype)


def _beside_a_guard(
    shape: tuple[int, ...], dtype: np.dtype[np.generic], *, before_it: bool
) -> NDArray[np.generic]:
    size_bytes = math.prod(shape) * dtype.itemsize
    pages = max(1, -(-size_bytes // PAGE)) * PAGE
    memory = mmap.mmap(-1, pages + 2 * PAGE)
    begin = np.frombuffer(memory, np.uint8).ctypes.data
    protect = ctypes.CDLL(None).mprotect
    protect.argtypes, protect.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    for guard in (begin, begin + PAGE + pages):
        if protect(guard, PAGE, _PROT_NONE):
            raise MemoryError("a page cannot be protected")
    return np.ndarray(shape, dtype, memory, PAGE + (pages - size_bytes if before_it else 0))
