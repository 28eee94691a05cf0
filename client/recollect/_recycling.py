"""Memory of large results, used again: to find new pages for one can take longer than to receive it."""

from __future__ import annotations

import contextlib
import math
import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recollect._forks import renewed_in_child

FROM_BYTES = 1024 * 1024
"""Smaller arrays come from the allocator's own memory."""

_KEPT_BYTES_MAX = 128 * 1024 * 1024
"""That wait to be used again, in a process. What is above goes at once."""

_ROOM_MAX = 4
"""A block is not used for less than this part of it."""

_REST_S = 1.0
"""What has not been used again for so long is freed."""


@dataclass(slots=True, eq=False)
class _Block:
    """Some memory.

    Attributes:
        memory: Its bytes, which nobody but the owner of a lease writes to.
        free_at_s: When it was found that nothing views it any more.
    """

    memory: npt.NDArray[np.uint8]
    free_at_s: float = 0.0


class Recycling:
    """Gives arrays, and their memory again when nothing views them any more. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Block] = []  # the one that waits longest first
        # By the collector of garbage, which may come while there is a lock.
        self._freed: deque[_Block] = deque()
        self._lent = 0
        self._is_watched = False
        renewed_in_child(self)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> npt.NDArray[np.generic]:
        """An array whose elements are anything."""
        size_bytes = math.prod(shape) * dtype.itemsize
        if size_bytes < FROM_BYTES:
            return np.empty(shape, dtype)
        block = self._taken(size_bytes) or _Block(np.empty(size_bytes, np.uint8))
        # An array of its own, not a view of the block's: it lives as long as views of it.
        lease = np.frombuffer(block.memory.data, np.uint8, size_bytes)
        weakref.finalize(lease, self._freed.append, block).atexit = False
        return lease.view(dtype).reshape(shape)

    def forked(self) -> None:
        """In the child, which has a copy of all memory, and not this one's thread."""
        self._lock = threading.Lock()  # another thread may have had it
        self._is_watched = False

    def _taken(self, size_bytes: int) -> _Block | None:
        """The smallest block that is free and large enough; None: it takes a new one."""
        with self._lock:
            self._take_back()
            self._lent += 1
            fitting = [
                block for block in self._idle if size_bytes <= block.memory.size <= _ROOM_MAX * size_bytes
            ]
            block = min(fitting, key=lambda each: each.memory.size, default=None)
            if block is not None:
                self._idle.remove(block)
            is_watched, self._is_watched = self._is_watched, True
        if not is_watched:
            with contextlib.suppress(RuntimeError):  # at the interpreter's end there are no new threads
                threading.Thread(target=self._free_unused, name="recollect-results", daemon=True).start()
        return block

    def _take_back(self) -> None:
        """What nothing views any more is idle. With the lock."""
        while self._freed:
            block = self._freed.popleft()
            block.free_at_s = time.monotonic()
            self._lent -= 1
            self._idle.append(block)
        while sum(block.memory.size for block in self._idle) > _KEPT_BYTES_MAX:
            self._idle.pop(0)

    def _free_unused(self) -> None:
        """Frees what has not been used for a while, until there is nothing left to wait for."""
        is_watched = True
        while is_watched:
            time.sleep(_REST_S)
            with self._lock:
                self._take_back()
                rested_s = time.monotonic() - _REST_S
                self._idle = [block for block in self._idle if block.free_at_s > rested_s]
                is_watched = self._is_watched = bool(self._idle or self._lent)


RESULTS = Recycling()
"""Of this process, as its allocator is."""
