"""What the allocator keeps of memory that was freed, given back to the system while the server rests.

Messages, buffers that a bank has outgrown and samples of an index come and go by megabytes. glibc keeps their
pages for what comes next, in an arena for each of several threads, and learns from large ones to keep more:
tens of megabytes in all, whatever is stored. Under load that saves page faults, so it is left alone then.
"""

from __future__ import annotations

import asyncio
import ctypes
import time
from collections.abc import Callable

LOOK_S = 1.0
"""How often it looks whether the server rests."""

RESTING = 0.05
"""Of one processor's time: who uses less since the last look rests."""


async def trim_at_rest() -> None:
    """Gives back what is free each time that the process comes to rest; ends where that cannot be done."""
    trim = _trim_of_libc()
    if trim is None:
        return
    has_worked, before_s = True, time.process_time()
    while True:
        await asyncio.sleep(LOOK_S)
        now_s = time.process_time()
        is_resting = now_s - before_s < RESTING * LOOK_S
        if is_resting and has_worked:
            await asyncio.to_thread(trim, 0)  # for some milliseconds
            now_s = time.process_time()
        has_worked, before_s = not is_resting, now_s


def _trim_of_libc() -> Callable[[int], int] | None:
    """`malloc_trim`, which is glibc's; calls of it do not hold the interpreter's lock."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another libc
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    called: Callable[[int], int] = trim
    return called
