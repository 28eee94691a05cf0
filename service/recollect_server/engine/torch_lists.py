"""The lists of an inverted file: which slots of a ring are near which centroid, first in, first out.

For each head and list there is a little ring of slots, oldest first. Entries leave a bank in the order in
which they came, so they leave each list in that order too: eviction moves the lists' heads. What finds its
list full goes to the head's spill list, which every query looks into. Beyond keys and values an entry costs,
for each head, 4 bytes for each place that is kept for it (`ROOM` of them) and 2 for the number of its list.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recollect_server.engine.strangers import TOLD
from recollect_server.engine.torch_kmeans import nearest_of

ROOM = 2.5
"""Places in the lists for each slot of the ring: clusters are never alike in size."""

LIST_PLACES_MIN = 32
SPILL_MIN = 1024
SPILL_SHARE = 16
"""A spill list holds one in so many of the bank's entries."""

LISTS_MAX = 2**15 - 1
"""The list of an entry is kept in 16 bits."""

SPILLED = -1


class Fifos:
    """Rings of slots: `rows` of them for each head, each with `places`."""

    def __init__(self, heads: int, rows: int, places: int, device: torch.device) -> None:
        self.slots = torch.zeros((heads, rows, places), dtype=torch.int32, device=device)
        self.first = torch.zeros((heads, rows), dtype=torch.int64, device=device)
        self.count = torch.zeros((heads, rows), dtype=torch.int64, device=device)
        self.places = places

    def push(self, slots: Tensor, rows: Tensor) -> Tensor:
        """Appends slots [T] of each head to its rows [H, T] (-1: to none); whether each found room [H, T]."""
        heads, size = rows.shape
        ordered, order = rows.sort(dim=1, stable=True)
        # The rank of an entry among those that go to the same row.
        rank = torch.arange(size, device=rows.device) - torch.searchsorted(ordered, ordered)
        wanted = ordered.clamp(min=0)
        at = self.count.gather(1, wanted) + rank
        fits = (ordered >= 0) & (at < self.places)
        place = (self.first.gather(1, wanted) + at) % self.places
        head = torch.arange(heads, device=rows.device)[:, None].expand_as(rows)
        self.slots[head[fits], wanted[fits], place[fits]] = slots[order][fits].int()
        self.count.scatter_add_(1, wanted, fits.long())
        return torch.zeros_like(fits).scatter_(1, order, fits)

    def drop(self, rows: Tensor) -> None:
        """Takes the oldest from rows [H, T], as often as each is named (-1: from none)."""
        gone = torch.zeros_like(self.count)
        gone.scatter_add_(1, rows.clamp(min=0), (rows >= 0).long())
        self.first = (self.first + gone) % self.places
        self.count -= gone

    def clear(self) -> None:
        """Empties all rows."""
        self.first.zero_()
        self.count.zero_()


class Lists:
    """An inverted file over `count` slots of a ring from `head` on.

    Args:
        centroids: float32 [H, L, D], of unit length.
        allocated: Slots of the ring.
        head: The first slot that will be added.
    """

    def __init__(self, centroids: Tensor, allocated: int, *, head: int) -> None:
        heads, lists, _ = centroids.shape
        places = max(LIST_PLACES_MIN, int(ROOM * allocated / lists))
        device = centroids.device
        self.centroids = centroids
        self.rows = Fifos(heads, lists, places, device)
        self.spill = Fifos(heads, 1, max(SPILL_MIN, allocated // SPILL_SHARE), device)
        self.list_of = torch.zeros((heads, allocated), dtype=torch.int16, device=device)
        self.allocated, self.head, self.count = allocated, head, 0

    @property
    def end(self) -> int:
        """The slot after the newest."""
        return (self.head + self.count) % self.allocated

    @property
    def bytes(self) -> int:
        """What they take."""
        rings = [part for each in (self.rows, self.spill) for part in (each.slots, each.first, each.count)]
        return sum(part.nbytes for part in (self.centroids, self.list_of, *rings))

    def add(self, keys: Tensor, *, near: float = 1.0, least: float = -1.0) -> tuple[bool, Tensor]:
        """Adds keys [H, T, D] of the slots from `end` on; T is at most what is free.

        Args:
            keys: In order of time.
            near: What this returned of those before.
            least: If keys are less near, they are another text's: lists do not say where they are, so they go
                to the spill lists.

        Returns:
            Whether all found room, and how near the latest of them are to their centroids: the mean cosine.
        """
        lists, cosines = nearest_of(keys, self.centroids)
        latest = near + min(1.0, keys.shape[1] / TOLD) * (cosines.mean() - near)
        return self.add_known(torch.where(latest < least, SPILLED, lists)), latest

    def add_known(self, lists: Tensor) -> bool:
        """Adds the slots from `end` on to lists [H, T] (or `SPILLED`); whether all found room."""
        size = lists.shape[1]
        slots = (self.end + torch.arange(size, device=lists.device)) % self.allocated
        fits = self.rows.push(slots, lists)
        lists = torch.where(fits, lists, SPILLED)
        spilled = self.spill.push(slots, torch.where(fits, -1, 0))
        self.list_of[:, slots] = lists.short()
        self.count += size
        return bool((fits | spilled).all())

    def drop_oldest(self, size: int) -> None:
        """Forgets the oldest entries."""
        if size >= self.count:
            self.restart((self.head + size) % self.allocated)
            return
        slots = (self.head + torch.arange(size, device=self.list_of.device)) % self.allocated
        lists = self.list_of[:, slots].long()
        self.rows.drop(lists)
        self.spill.drop(torch.where(lists == SPILLED, 0, -1))
        self.head, self.count = (self.head + size) % self.allocated, self.count - size

    def restart(self, head: int) -> None:
        """Forgets all entries; the next will be in slot `head`."""
        self.rows.clear()
        self.spill.clear()
        self.head, self.count = head, 0

    def make_way(self, start: int, size: int) -> None:
        """Forgets what lies in `size` slots from `start` on, which are about to be written."""
        ahead = (start - self.head) % self.allocated
        if 0 < ahead < self.count:
            self.restart(start)  # the ring has begun anew in the middle
        elif (over := size - ((self.allocated - ahead) if ahead else 0)) > 0 and self.count:
            self.drop_oldest(over)

    def begin_at(self, start: int) -> None:
        """Forgets what is older than the live ring, which begins at slot `start`."""
        if dead := (start - self.head) % self.allocated:
            self.drop_oldest(dead)
            self.head = start

    def renumbered(self, slots: Tensor, allocated: int, *, head: int) -> tuple[Lists, bool]:
        """The lists after entries in `slots` [n] (oldest first) have moved to those from `head` on."""
        moved = Lists(self.centroids, allocated, head=head)
        fits = moved.add_known(self.list_of[:, slots].long()) if slots.numel() else True
        return moved, fits

    def clear(self) -> None:
        """Zeroes what was made of keys."""
        self.restart(0)
        self.centroids.zero_()
