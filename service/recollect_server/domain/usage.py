"""What is stored, counted while it changes: for a namespace, its tenant, and the server."""

from __future__ import annotations


class Usage:
    """Totals that are kept, so that nobody has to add up all banks.

    The device's thread changes them; any thread may read them.

    Args:
        parent: What these totals are a part of, and which changes with them.

    Attributes:
        bytes: Allocated for keys, values and indexes, and 4 KiB for each bank.
        entries: Stored.
        streams: That exist.
    """

    __slots__ = ("_parent", "bytes", "entries", "streams")

    def __init__(self, parent: Usage | None = None) -> None:
        self._parent = parent
        self.bytes = 0
        self.entries = 0
        self.streams = 0

    def change(self, *, allocated_bytes: int = 0, entries: int = 0, streams: int = 0) -> None:
        """Counts what came (or, negative, went), here and in everything that this is a part of."""
        usage: Usage | None = self
        while usage is not None:
            usage.bytes += allocated_bytes
            usage.entries += entries
            usage.streams += streams
            usage = usage._parent
