"""Zeroing memory that is about to be freed, so that nothing of one stream is left where another's may lie."""

from __future__ import annotations

import ctypes
import mmap
import platform
from functools import cache

import numpy as np
from numpy.typing import NDArray

LARGE_BYTES = 1024 * 1024
"""From here on pages are given back, in place of writing zeroes to them."""


def zero(array: NDArray[np.generic]) -> None:
    """Zeroes an array of NumPy's. Pages of large ones go back to the system, which clears them."""
    if array.nbytes >= LARGE_BYTES and not array.flags.c_contiguous and array.ndim > 2:
        for head in array:  # each lies apart
            zero(head)
        return
    if array.nbytes < LARGE_BYTES or not array.flags.c_contiguous:
        array.fill(0)
        return
    elements = array.reshape(-1).view(np.uint8)
    first: int = elements.__array_interface__["data"][0]
    begin = -first % mmap.PAGESIZE
    end = elements.size - (first + elements.size) % mmap.PAGESIZE
    if not _give_back(first + begin, end - begin):
        begin = end = elements.size
    elements[:begin] = 0
    elements[end:] = 0


def _give_back(address: int, size_bytes: int) -> bool:
    """Whole pages; whether the system took them. What is read there next is 0."""
    madvise = _madvise()
    return madvise is not None and madvise(address, size_bytes, mmap.MADV_DONTNEED) == 0


@cache
def _madvise() -> ctypes._NamedFuncPointer | None:
    if platform.system() != "Linux":  # others may keep what was written
        return None
    try:
        library = ctypes.CDLL(None)
        library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        return library.madvise
    except (AttributeError, OSError):
        return None
