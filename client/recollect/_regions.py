"""Memory that is shared with a server on this machine, so that large tensors need not pass the socket."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from recollect.errors import RecollectError
from recollect.v1 import memory_pb2 as pb

SHARED_FROM_BYTES = 256 * 1024
"""Less is as fast in the message."""

_SOCKET_SUFFIX = ".region"
_REGIONS_MAX = 4
"""Of one client: calls that use one at the same time. Others go without."""

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
        used_at_s: When the last call that used it ended.
        is_empty: Whether it has no pages, and so takes no memory, until the next call.
    """

    id: bytes
    memory: Bytes
    connection: socket.socket
    _mapping: mmap.mmap
    used_at_s: float = 0.0
    is_empty: bool = True

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
        self._count = 0
        self._is_watched = self._is_closed = False
        self._not_before_s = 0.0 if path is not None else float("inf")

    def take(self, size_bytes: int) -> Region | None:
        """A region that is free and large enough, or None."""
        with self._lock:
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

    def give_back(self, region: Region) -> None:
        """After a call that ended well."""
        region.used_at_s, region.is_empty = time.monotonic(), False
        with self._lock:
            if self._is_closed:
                self._count -= 1
                region.close()
                return
            self._idle.append(region)
            if self._is_watched:
                return
            self._is_watched = True
        with contextlib.suppress(RuntimeError):  # at the interpreter's end there are no new threads
            threading.Thread(target=self._empty_unused, name="recollect-regions", daemon=True).start()

    def give_up(self, region: Region | None) -> None:
        """After one that did not: the server may still write there. None: it was not opened after all."""
        with self._lock:
            self._count -= 1
        if region is not None:
            region.close()

    def pause(self) -> None:
        """Asks for none for a while: the server would not share."""
        with self._lock:
            self._not_before_s = max(self._not_before_s, time.monotonic() + _PAUSE_S)

    @contextlib.contextmanager
    def lent(self, region: Region) -> Generator[None]:
        """For one call: keeps the region if it ends well, gives it up otherwise.

        What follows is reached if it was for the region alone that the call was refused.
        """
        try:
            yield
        except BaseException as error:
            self.give_up(region)
            if not (isinstance(error, RecollectError) and _is_of_region(error)):
                raise
        else:
            self.give_back(region)

    def close(self) -> None:
        """Gives all up: those that are in use when their calls end."""
        with self._lock:
            self._is_closed = True
            self._not_before_s = float("inf")
            while self._idle:
                self._idle.pop().close()
                self._count -= 1

    def _empty_unused(self) -> None:
        """Empties regions that nobody uses any more, until those are all."""
        while self._is_watched:
            time.sleep(_REST_S)
            with self._lock:
                for region in self._idle:
                    if not region.is_empty and time.monotonic() - region.used_at_s >= _REST_S:
                        region.empty()
                self._is_watched = not all(region.is_empty for region in self._idle)

    def attach(self, reply: pb.OpenRegionResponse, left_s: float | None = None) -> Region:
        """Takes over what the server opened, within the time that its call has left.

        Raises:
            OSError: Its socket does not hand it over.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_HAND_OVER_S if left_s is None else min(_HAND_OVER_S, left_s))
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
        return Region(reply.region, np.frombuffer(mapping, np.uint8), connection, mapping)


def open_requests(size_bytes: int) -> Iterator[pb.OpenRegionRequest]:
    """For a region that so many bytes of tensors fit into, and most that come after.

    The second is for these alone: if the first is for more than the server gives.
    """
    wanted = max(_BYTES_MIN, size_bytes)
    yield pb.OpenRegionRequest(bytes=(1 << (wanted - 1).bit_length()) + _PADDING_BYTES)
    yield pb.OpenRegionRequest(bytes=size_bytes + _PADDING_BYTES)


def asked_into(request: Message, region: Region) -> pb.SearchRequest:
    """A search, to be answered in a region."""
    asked = pb.SearchRequest(region=region.id)
    asked.MergeFrom(cast("pb.SearchRequest", request))
    return asked


REFUSALS = (RecollectError, OSError)
"""What comes of a server that does not share memory, or not now."""


def _is_of_region(error: RecollectError) -> bool:
    # The call would have been answered without one: the region is not there any more, say.
    return error.reason.startswith("REGION_")
