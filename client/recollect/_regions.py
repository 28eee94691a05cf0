"""Memory that is shared with a server on this machine, so that large tensors need not pass the socket."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from recollect._impatience import Impatience
from recollect.errors import DeadlineExceededError, RecollectError, UnavailableError
from recollect.v1 import memory_pb2 as pb

SHARED_FROM_BYTES = 64 * 1024
"""Less is as fast in the message (measured; twice as much takes a fifth longer there)."""

_SOCKET_SUFFIX = ".region"
_REGIONS_MAX = 4
"""Of one client: calls that use one at the same time. Others go without."""

_KEPT_MAX = 2
"""Of these, so many at most hold results that are still there: the next one is made beside the last."""

_BYTES_MIN = 4 * 1024 * 1024
_PADDING_BYTES = 4096
"""For arrays that begin at round places."""

_HAND_OVER_S = 5.0
_PAUSE_S = 30.0
"""After the server would not share."""

_REST_S = 1.0
"""A region that no call has used for so long is emptied: its pages count to the server too."""

_ALIGNMENT_BYTES = 64

Bytes = npt.NDArray[np.uint8]


@dataclass(slots=True, eq=False)
class Region:
    """Memory that the server made.

    Attributes:
        id: What requests name it by.
        memory: Its bytes.
        used_at_s: When it was found that no call and no result uses it any more.
        is_empty: Whether it has no pages, and so takes no memory, until the next call.
        is_of_fork: Whether a process that was forked has results there: it is not used again.
    """

    id: bytes
    memory: Bytes
    connection: socket.socket
    _mapping: mmap.mmap
    used_at_s: float = 0.0
    is_empty: bool = True
    is_of_fork: bool = False

    def view(self) -> Bytes:
        """The same bytes as an array of its own: it lives as long as views of it."""
        return np.frombuffer(self._mapping, np.uint8)

    def put(self, arrays: Sequence[npt.NDArray[np.generic]]) -> list[int]:
        """Copies arrays there; returns where each begins."""
        offsets, at = [], 0
        for array in arrays:
            end = at + array.nbytes
            self.memory[at:end].view(array.dtype).reshape(array.shape)[...] = array
            offsets.append(at)
            at = -(-end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        return offsets

    def empty(self) -> None:
        """Frees its pages, here and at the server. Not while a call uses it."""
        with contextlib.suppress(OSError):  # a kernel that cannot
            self._mapping.madvise(mmap.MADV_REMOVE)
        self.is_empty = True

    def close(self) -> None:
        """Tells the server that it is not needed any more."""
        with contextlib.suppress(OSError):  # the server is gone
            self.connection.shutdown(socket.SHUT_RDWR)  # a process that was forked holds it open too
        self.connection.close()


class RegionPool:
    """Regions of one client, each used by one call at a time. Threads may share it.

    Args:
        path: Of the server's socket; None: there is none, so nothing is shared.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._idle: list[Region] = []
        self._kept: list[Region] = []  # by results, or their array is about to go
        # By the collector of garbage, which may come while there is a lock.
        self._freed: deque[Region] = deque()
        self._count = 0
        self._is_watched = self._is_closed = False
        self._not_before_s = 0.0 if path is not None else float("inf")
        self._impatience = Impatience(_HAND_OVER_S)
        _pools.add(self)

    def take(self, size_bytes: int) -> Region | None:
        """A region that is free and large enough, or None."""
        with self._lock:
            self._take_back()
            for region in self._idle:
                if region.memory.size >= size_bytes + _PADDING_BYTES:
                    self._idle.remove(region)
                    return region
            return None

    def may_open(self) -> bool:
        """Whether another one may be asked for now; if so it counts, until it is given up."""
        with self._lock:
            if time.monotonic() < self._not_before_s:
                return False
            if self._count >= _REGIONS_MAX and self._idle:
                self._idle.pop(0).close()  # too small, or it would have been taken
                self._count -= 1
            if self._count >= _REGIONS_MAX:
                return False
            self._count += 1
            return True

    def may_keep(self) -> bool:
        """Whether results of a call may stay in its region: as long as they do, no other call can use it."""
        with self._lock:
            self._take_back()
            return len(self._kept) < _KEPT_MAX

    def _give_back(self, region: Region) -> None:
        """After a call that ended well; its results may lie there."""
        region.is_empty = False
        with self._lock:
            self._kept.append(region)
            if self._is_closed:
                region.close()
                return
            if self._is_watched:
                return
            self._is_watched = True
        with contextlib.suppress(RuntimeError):  # at the interpreter's end there are no new threads
            threading.Thread(target=self._empty_unused, name="recollect-regions", daemon=True).start()

    def give_up(self, region: Region) -> None:
        """After one that did not: the server may still write there."""
        with self._lock:
            self._count -= 1
        region.close()

    def failed(self, error: BaseException, *, asked_at_s: float, left_s: float | None) -> None:
        """One that was asked for did not come. Where the server would not share, none is for a while.

        That nobody answered, or not in the caller's own time, is no such thing, unless it goes on.
        """
        passes = left_s == 0 or isinstance(error, (DeadlineExceededError, UnavailableError))
        now_s = time.monotonic()
        with self._lock:
            self._count -= 1
            if not isinstance(error, REFUSALS):
                return
            if self._impatience.is_over(now_s - asked_at_s if passes else math.inf):
                self._not_before_s = max(self._not_before_s, now_s + _PAUSE_S)

    @contextlib.contextmanager
    def lent(self, region: Region) -> Generator[Bytes]:
        """For one call: its bytes. If it ends well, the region is free when nothing views these.

        If not, it is given up. What follows is reached if it was for the region alone that it was refused.
        """
        memory = region.view()
        freed = weakref.finalize(memory, self._freed.append, region)
        freed.atexit = False
        try:
            yield memory
        except BaseException as error:
            freed.detach()
            self.give_up(region)
            if not (isinstance(error, RecollectError) and _is_of_region(error)):
                raise
        else:
            self._give_back(region)

    def _take_back(self) -> None:
        """Regions that nothing views any more are idle. With the lock."""
        while self._freed:
            region = self._freed.popleft()
            if region not in self._kept:  # it was of the process that this one was forked from
                continue
            self._kept.remove(region)
            if self._is_closed or region.is_of_fork:
                region.close()
                self._count -= 1
            else:
                region.used_at_s = time.monotonic()
                self._idle.append(region)

    def close(self) -> None:
        """Gives all up: those that are in use when their calls end."""
        with self._lock:
            self._is_closed = True
            self._not_before_s = float("inf")
            for region in self._kept:
                region.close()  # results stay as they are: it is theirs alone now
            while self._idle:
                self._idle.pop().close()
                self._count -= 1

    def forked(self, *, is_child: bool) -> None:
        """Two processes see the same memory now: no call writes where results are that both may have.

        What they write to results themselves, as one may to torch tensors, the other one sees.
        """
        if not is_child:
            with self._lock:
                self._take_back()
                for region in self._kept:
                    region.is_of_fork = True
            return
        self._lock = threading.Lock()  # another thread may have had it
        for region in (*self._idle, *self._kept):
            region.connection.close()  # this process's end; the region is the other one's
        self._idle, self._kept, self._count = [], [], 0
        self._is_watched = False

    def _empty_unused(self) -> None:
        """Empties regions that nobody uses any more, until those are all."""
        while self._is_watched:
            time.sleep(_REST_S)
            with self._lock:
                self._take_back()
                for region in self._idle:
                    if not region.is_empty and time.monotonic() - region.used_at_s >= _REST_S:
                        region.empty()
                rests = not self._kept and all(region.is_empty for region in self._idle)
                self._is_watched = not (rests or self._is_closed)

    def attach(self, reply: pb.OpenRegionResponse, left_s: float | None = None) -> Region:
        """Takes over what the server opened, within the time that its call has left.

        Raises:
            OSError: Its socket does not hand it over.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_HAND_OVER_S if left_s is None else min(_HAND_OVER_S, left_s / 2))
            connection.connect(f"{self._path}{_SOCKET_SUFFIX}")
            connection.sendall(reply.region)
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
            if not descriptors:
                raise OSError("the server handed no region over")
            with contextlib.ExitStack() as opened:
                opened.callback(os.close, descriptors[0])
                if os.fstat(descriptors[0]).st_size < reply.bytes:
                    raise OSError("the server's region is smaller than it says")
                mapping = mmap.mmap(descriptors[0], reply.bytes)
        except BaseException:
            connection.close()
            raise
        self._impatience.was_wrong()
        return Region(reply.region, np.frombuffer(mapping, np.uint8), connection, mapping)


_pools: weakref.WeakSet[RegionPool] = weakref.WeakSet()


def _forked(*, is_child: bool) -> None:
    for pool in list(_pools):
        pool.forked(is_child=is_child)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        after_in_parent=partial(_forked, is_child=False), after_in_child=partial(_forked, is_child=True)
    )


def open_requests(size_bytes: int) -> Iterator[pb.OpenRegionRequest]:
    """For a region that so many bytes of tensors fit into, and most that come after.

    The second is for these alone: if the first is for more than the server gives.
    """
    wanted = max(_BYTES_MIN, size_bytes)
    yield pb.OpenRegionRequest(bytes=(1 << (wanted - 1).bit_length()) + _PADDING_BYTES)
    yield pb.OpenRegionRequest(bytes=size_bytes + _PADDING_BYTES)


REFUSALS = (RecollectError, OSError)
"""What comes of a server that does not share memory, or not now: the call goes without."""


def _is_of_region(error: RecollectError) -> bool:
    # The call would have been answered without one: the region is not there any more, say.
    return error.reason.startswith("REGION_")
