"""Bytes that are written where they lie: what is gathered is in its message at once, not copied into it."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

# Python documents both for this: the contents of a new object are not initialized, and may be written
# "if the object was just created using PyBytes_FromStringAndSize(NULL, size)".
_new = ctypes.pythonapi.PyBytes_FromStringAndSize
_new.argtypes, _new.restype = (ctypes.c_void_p, ctypes.c_ssize_t), ctypes.py_object
_address = ctypes.pythonapi.PyBytes_AsString
_address.argtypes, _address.restype = (ctypes.py_object,), ctypes.c_void_p


def fresh_bytes(size: int) -> tuple[bytes, npt.NDArray[np.uint8]]:
    """New bytes, not cleared, and their memory [size].

    All of it has to be written before anybody is given the bytes, and nothing after that; the memory is
    theirs, and goes with them.

    Args:
        size: At least 2: shorter ones are shared by everybody.
    """
    if size < 2:
        raise ValueError(f"size is {size}; bytes shorter than 2 are not new")
    raw: bytes = _new(None, size)
    memory = (ctypes.c_uint8 * size).from_address(_address(raw))
    return raw, np.frombuffer(memoryview(memory), np.uint8)
