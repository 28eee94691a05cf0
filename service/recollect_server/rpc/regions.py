"""Memory that the server and a caller on the same machine share: who may use it, and how much there is."""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from recollect_server.domain.errors import (
    InvalidArgumentError,
    RegionNotFoundError,
    RegionUnusableError,
    TooManyRegionsError,
)
from recollect_server.domain.identity import Caller
from recollect_server.domain.limits import Limits

ID_BYTES = 16

CLAIM_S = 10.0
"""A region that nobody has asked for by then is closed when the next one is opened."""

PADDING_BYTES = 4096
"""Beside the bytes of the largest answer: its arrays begin at round places."""


@dataclass(slots=True, eq=False)
class Region:
    """Shared memory of one caller.

    Attributes:
        id: What calls name it by; random.
        owner: Tenant and key of who opened it; for all others it does not exist.
        descriptor: Of the memory; -1 once it was handed over.
        memory: Its bytes. The server only writes there, and copies what it reads before it looks at it: the
            caller can change them at any time.
    """

    id: bytes
    owner: tuple[str, str]
    descriptor: int
    memory: npt.NDArray[np.uint8]
    opened_at_s: float = field(default_factory=time.monotonic)
    is_used: bool = False


class Regions:
    """All regions of a server. Not thread-safe: the event loop owns it.

    Args:
        limits: `regions_max` and `regions_of_tenant_max` bound their number, `stream_bytes_max` their size.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._bytes_max = limits.stream_bytes_max + PADDING_BYTES
        self._regions: dict[bytes, Region] = {}

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._regions)

    def open(self, caller: Caller, size_bytes: int) -> Region:
        """Makes a region, to be claimed soon.

        Raises:
            InvalidArgumentError: It would be larger than any answer, or empty.
            TooManyRegionsError: There are as many as there may be.
        """
        if not 1 <= size_bytes <= self._bytes_max:
            raise InvalidArgumentError("bytes", f"is {size_bytes}; regions have 1 to {self._bytes_max:,}")
        self._close_unclaimed()
        self._require_room(caller.tenant)
        descriptor, memory = _shared(size_bytes)
        region = Region(secrets.token_bytes(ID_BYTES), (caller.tenant, caller.key_id), descriptor, memory)
        self._regions[region.id] = region
        return region

    def claim(self, region_id: bytes) -> Region | None:
        """The region of this id, for the first who asks."""
        region = self._regions.get(region_id)
        return region if region is not None and region.descriptor >= 0 else None

    def handed_over(self, region: Region) -> None:
        """Its descriptor is with its caller, and not needed here any more."""
        os.close(region.descriptor)
        region.descriptor = -1

    def close(self, region: Region) -> None:
        """Forgets it. Its memory goes when no call uses it any more, here and at its caller's."""
        if self._regions.pop(region.id, None) is not None and region.descriptor >= 0:
            self.handed_over(region)

    def close_all(self) -> None:
        """At the end of the server."""
        for region in list(self._regions.values()):
            self.close(region)

    @contextmanager
    def use(self, caller: Caller, region_id: bytes) -> Iterator[npt.NDArray[np.uint8]]:
        """Lends a region of the caller's to a call.

        Raises:
            RegionNotFoundError: There is none of this id, or it is somebody else's.
            RegionUnusableError: Another call uses it.
        """
        region = self._regions.get(region_id)
        if region is None or region.owner != (caller.tenant, caller.key_id):
            raise RegionNotFoundError("no region of this id is open", argument="region")
        if region.is_used:
            raise RegionUnusableError("another call uses this region", argument="region")
        region.is_used = True
        try:
            yield region.memory
        finally:
            region.is_used = False

    def _require_room(self, tenant: str) -> None:
        of_tenant = sum(region.owner[0] == tenant for region in self._regions.values())
        for count, most in (
            (of_tenant, self._limits.regions_of_tenant_max),
            (len(self._regions), self._limits.regions_max),
        ):
            if count >= most:
                raise TooManyRegionsError(f"{count} regions are open, which is the most; close one first")

    def _close_unclaimed(self) -> None:
        latest_s = time.monotonic() - CLAIM_S
        for region in list(self._regions.values()):
            if region.descriptor >= 0 and region.opened_at_s < latest_s:
                self.close(region)


def _shared(size_bytes: int) -> tuple[int, npt.NDArray[np.uint8]]:
    """Memory without a name, and its descriptor."""
    descriptor = os.memfd_create("recollect-region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size_bytes)
        # Whoever could shrink it would end the server, which writes there, with a bus error.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        return descriptor, np.frombuffer(mmap.mmap(descriptor, size_bytes), np.uint8)
    except BaseException:
        os.close(descriptor)
        raise
