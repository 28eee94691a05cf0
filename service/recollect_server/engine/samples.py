"""A few live queries, kept until they are compared with exact search."""

from __future__ import annotations

from collections import deque

from recollect_server.domain.arrays import Float32, Raw, to_float32
from recollect_server.domain.spec import Dtype

SAMPLES = 64
"""So many are kept."""

TAKEN, SCATTERED = 4, 0.6180339887
"""Of one search so many are taken, each time from other places, so that in the end all are: by the golden
section of what lies between two."""


def place(number: int, places: int) -> int:
    """Where the sample of this number begins: those that come one after the other are far apart."""
    return int(number * SCATTERED % 1 * places)


class Samples:
    """Of the searches of one head, with how many entries each asked for.

    Attributes:
        kept: The latest: queries [D], and their top_k.
        fresh: Searches since they were last taken.
    """

    def __init__(self) -> None:
        self.kept: deque[tuple[Float32, int]] = deque(maxlen=SAMPLES)
        self.fresh = 0
        self._searches = 0

    def __len__(self) -> int:
        return len(self.kept)

    def add(self, queries: Raw, top_k: int, *, dtype: Dtype) -> None:
        """Keeps a few of the queries [N, D] of a search."""
        self.fresh += 1
        self._searches += 1
        step = max(1, len(queries) // TAKEN)
        first = place(self._searches, step)
        for query in to_float32(queries[first::step][:TAKEN].copy(), dtype):
            self.kept.append((query, top_k))

    def take(self, *, keeps: bool = False) -> list[tuple[Float32, int]]:
        """All that are kept.

        Args:
            keeps: Whether they stay: other lists will be judged by them, too.
        """
        taken = list(self.kept)
        if not keeps:
            self.kept.clear()
        self.fresh = 0
        return taken

    def clear(self) -> None:
        """Zeroes them."""
        for query, _ in self.kept:
            query.fill(0)
