"""Entries that fit into no list: keys of another text than those that lists were made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recollect_server.domain.arrays import Float32
from recollect_server.engine.ranges import Ranges, common, length_of

UNLIKE = 1.8
"""Keys whose squared distances to their centroids are so many times the usual are strangers. Of 512 keys of
text that goes on they are up to 1.7 times the usual (measured), of other text 2 to 10 times."""

TOLD = 64
"""So many keys tell whether a text has changed; a part of fewer is taken together with those before it."""

FARTHEST = 4.0
"""In radii. A list of equal keys has hardly any radius, and must not make all others near for ever after."""

SOME, MANY = 1 / 16, 1 / 8
"""Of a bank's entries: so many say that its keys have changed, and that lists are to be made anew."""

PARTS_MAX = 64
"""In more parts than these they would take long to go through: what comes then is put into lists."""


class Strangers:
    """Those of one file, and how it is told that keys are such.

    Lists say where a key is by its nearest centroid, and how far a query has to reach by how far keys are
    from theirs. Of keys that are far from all centroids neither is true, so lists would not find them.

    Args:
        entries: How many there are as lists are made. These are what is usual, whatever they are.

    Attributes:
        slots: Where they are.
        are_latest: Whether the latest keys are such.
    """

    def __init__(self, entries: int) -> None:
        self.slots, self.are_latest = Ranges(), False
        self._entries, self._seen = max(1, entries), 0
        self._usual = self._now = 1.0  # mean squares of distances, in radii of the lists

    def are(self, distances: Float32, *, of: int) -> bool:
        """Whether the next keys in order of time are strangers.

        Args:
            distances: Of some of them to their centroids, in radii of their lists; [n], n >= 1.
            of: How many keys they stand for.
        """
        mean = float(np.square(np.fmin(distances, FARTHEST)).mean())
        self._now += (mean - self._now) * min(1.0, of / TOLD)
        is_usual = self._now <= UNLIKE * max(1.0, self._usual) or self._seen < self._entries
        if is_usual:
            self._seen += of
            self._usual += (mean - self._usual) * min(1.0, of / min(self._seen, self._entries))
        self.are_latest = not is_usual
        return self.are_latest and len(list(self.slots)) < PARTS_MAX

    def keep(self, live: Sequence[slice]) -> None:
        """Those in other slots are gone: evicted, and not written anew yet."""
        kept = common(self.slots, live)
        if length_of(kept) < len(self.slots):
            self.slots = Ranges()
            for part in kept:
                self.slots.add(part)

    def are_some(self, entries: int) -> bool:
        """Whether enough of so many entries are strangers for the text to be another."""
        return len(self.slots) > SOME * entries

    def are_many(self, entries: int) -> bool:
        """Whether looking at all of them takes long enough to make lists anew."""
        return len(self.slots) > MANY * entries
