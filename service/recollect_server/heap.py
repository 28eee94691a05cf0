"""What the C library's allocator keeps of memory that was freed: in one place, and given back at rest.

Messages, buffers that a bank has outgrown and samples of an index come and go by megabytes. glibc keeps their
pages for what comes next, and learns from large ones to keep more: tens of megabytes, whatever is stored, and
in one arena for each of many threads. So do the kernels, of what their threads calculate in. Elsewhere than
with glibc nothing here does anything.
"""

from __future__ import annotations

import asyncio
import ctypes
import time

from recollect_server.engine import kernels

LOOK_S = 1.0
"""How often it is looked whether the server rests."""

RESTING = 0.05
"""Of one processor's time: who used less since the last look rests."""

WORTH_S = 0.02
"""Who has used so much processor time since the last time may have something to give back again."""

FROM_HEAP_BYTES, KEPT_BYTES = 32 * 1024 * 1024, 64 * 1024 * 1024
"""Smaller blocks come from the heap, and so much that is free at its end stays there until the server rests.

It is what glibc would learn from the largest blocks that it learns from. Until it has, answers of megabytes
are given back as soon as they are sent, and the pages of the next one are asked for, and cleared, anew."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of malloc.h


def use_one_arena() -> None:
    """Has all threads take memory from one arena, large blocks too. Call it before there are threads.

    What one thread frees is then used by the next one, and all of it can be given back: of arenas beyond the
    first, glibc never gives back the top. The interpreter's lock keeps threads from asking at once.
    """
    library = _glibc()
    if library is not None:
        library.mallopt(_M_ARENA_MAX, 1)
        library.mallopt(_M_MMAP_THRESHOLD, FROM_HEAP_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


async def trim_at_rest() -> None:
    """Gives back what is free, whenever the process rests after it has worked.

    Not before: under load, pages that are kept are faults that are spared.
    """
    library = _glibc()
    if library is None:
        return
    given_back_s = before_s = time.process_time()
    while True:
        await asyncio.sleep(LOOK_S)
        now_s = time.process_time()
        if now_s - before_s < RESTING * LOOK_S and now_s - given_back_s > WORTH_S:
            await asyncio.to_thread(_give_back, library)
            given_back_s = time.process_time()
        before_s = now_s


def _give_back(library: ctypes.CDLL) -> None:
    """Takes a few milliseconds, without the interpreter's lock."""
    kernels.give_back()
    library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # not a system with such a thing
        return None
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        return None
    library.malloc_trim.argtypes, library.malloc_trim.restype = [ctypes.c_size_t], ctypes.c_int
    return library
