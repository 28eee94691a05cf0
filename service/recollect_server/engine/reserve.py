"""Address space for more than a bank holds yet: its buffers grow where they lie.

To copy a large bank to larger buffers takes as long as to write all that it holds once more, and twice its
memory until it is done. What is reserved takes no memory before it is written to. Linux alone: elsewhere, or
where address space is limited, banks are copied.
"""

from __future__ import annotations

import contextlib
import mmap
import platform

import numpy as np

from recollect_server.domain.arrays import RowBytes
from recollect_server.domain.spec import NamespaceSpec

LARGE_BYTES = 8 * 1024 * 1024
"""Of a head's keys or values. Below, copying takes a millisecond, and each reservation is one more mapping of
the process, of which there may be some ten thousands."""

TIMES = 64
"""As much address space as is in use, at most: what a server's memory is used for then fits into 47 bits."""

HUGE_BYTES = 2 * 1024 * 1024
"""Of a large page. Each head begins with one, or two heads would share it and neither have it whole."""

_NO_RESERVE = 0x4000
"""MAP_NORESERVE of Linux: nothing is set aside for what may never be written."""


def reserve(spec: NamespaceSpec, slots: int, row_bytes: int) -> RowBytes | None:
    """A buffer [Hkv, slots or more, row_bytes] of zeroes, apart head by head.

    Args:
        spec: Says how many slots there will be at most.
        slots: In use from now on.
        row_bytes: Of a key or a value.

    Returns:
        None where it would be of no use, or cannot be had.
    """
    wanted = min(spec.capacity, TIMES * slots)
    if slots * row_bytes < LARGE_BYTES or wanted == slots or platform.system() != "Linux":
        return None
    head_bytes = -(-wanted * row_bytes // HUGE_BYTES) * HUGE_BYTES
    try:
        memory = mmap.mmap(
            -1,
            spec.heads * head_bytes + HUGE_BYTES,
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE,
        )
    except (OSError, OverflowError):
        return None
    with contextlib.suppress(OSError):  # a kernel without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    first = -np.frombuffer(memory, np.uint8).ctypes.data % HUGE_BYTES
    strides = head_bytes, row_bytes, 1
    return np.ndarray((spec.heads, wanted, row_bytes), np.uint8, memory, first, strides)
