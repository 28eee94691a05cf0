"""Searches of a bank's tensors in steps: all of its live slots, or a few lists of an inverted file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recollect_server.domain import work
from recollect_server.domain.steps import Steps
from recollect_server.engine.tiles import queries_of_tile, rows_of_tile
from recollect_server.engine.torch_lists import Lists
from recollect_server.engine.torch_merge import best_of, empty, merged
from recollect_server.engine.torch_search import ExactSearch, products

Found = tuple[Tensor, Tensor]
"""Scores float32 and slots int64 [H, N, K]; -inf and -1 where there is no entry."""

Pause = Callable[[int], Steps[int]]
"""Waits for the device, yields the multiply-adds done, and returns what the next step may take."""

BLOCK_BYTES_MAX = 128 * 1024 * 1024
"""Keys and scores of lists are gathered, and candidates kept, in so many bytes."""


def exact(
    way: ExactSearch, queries: Tensor, keys: Tensor, *, live: Sequence[slice], top_k: int, pause: Pause
) -> Steps[Found]:
    """The best of all live slots, for queries [H, N, D] and keys [H, slots, D]."""
    left = yield 0
    heads, count, dim = queries.shape
    best = empty(queries, top_k)
    total, first = sum(s.stop - s.start for s in live), 0
    while first < total:
        rows = rows_of_tile(left // heads, queries=count, rows=total - first, dim=dim)
        block, done = part_of(live, first, first + rows), 0
        while done < count:
            size = queries_of_tile(left // heads, queries=count - done, rows=rows, dim=dim)
            part = slice(done, done + size)
            found = way.top_k_of(queries[:, part], keys, block, top_k)
            before = best[0][:, part], best[1][:, part]
            best[0][:, part], best[1][:, part] = merged(before, found, top_k) if first else found
            done += size
            left = yield from pause(heads * work.searched(size, rows, dim))
        first += rows
    return best


def part_of(live: Sequence[slice], first: int, last: int) -> list[slice]:
    """Slots of the entries at positions from `first` to before `last` (0 = oldest)."""
    parts, passed = [], 0
    for segment in live:
        size = segment.stop - segment.start
        begin, end = max(0, first - passed), min(size, last - passed)
        if begin < end:
            parts.append(slice(segment.start + begin, segment.start + end))
        passed += size
    return parts


def probed(
    lists: Lists, queries: Tensor, keys: Tensor, *, probes: int, top_k: int, pause: Pause
) -> Steps[Found]:
    """The best in the `probes` lists that are nearest to each query, and among the spilled."""
    left = yield 0
    heads, count, _ = queries.shape
    kept = min(top_k, lists.rows.places)
    size = max(1, BLOCK_BYTES_MAX // (12 * heads * max(probes * kept, lists.centroids.shape[1])))
    best = empty(queries, top_k)
    for first in range(0, count, size):
        part = slice(first, first + size)
        scan = _ListMajor(lists, queries[:, part], keys, probes=probes, kept=kept)
        while scan.remain:
            left = yield from pause(scan.block(left))
        found = best_of(*scan.candidates(), top_k)
        spilled, done = _spilled(lists, queries[:, part], keys, top_k)
        best[0][:, part], best[1][:, part] = merged(found, spilled, top_k)
        left = yield from pause(done)
    return best


class _ListMajor:
    """Each list that some query looks into is read once, for all queries that do, in blocks of such lists."""

    def __init__(self, lists: Lists, queries: Tensor, keys: Tensor, *, probes: int, kept: int) -> None:
        heads, count, dim = queries.shape
        self._lists, self._keys, self._probes = lists, keys, probes
        self._queries = queries.reshape(heads * count, dim)
        near = products(queries.float(), lists.centroids).topk(probes, dim=-1).indices  # [H, N, P]
        head = torch.arange(heads, device=queries.device)[:, None, None]
        pairs = (near + head * lists.centroids.shape[1]).flatten()  # a query and a list that it looks into
        ordered, order = pairs.sort()
        row, asked = torch.unique_consecutive(ordered, return_counts=True)
        first = asked.cumsum(0) - asked
        # Lists that alike many ask for stand together, so that little of a block is padding.
        asked, by = asked.sort(descending=True)
        self._row, self._first, self._asked, self._order = row[by], first[by], asked, order
        stored = lists.rows.count.flatten()[self._row]
        self._asked_of: list[int] = asked.tolist()
        self._stored_of: list[int] = stored.tolist()
        self._scores = torch.full((pairs.numel(), kept), float("-inf"), device=queries.device)
        self._slots = torch.full((pairs.numel(), kept), -1, dtype=torch.int64, device=queries.device)
        self._shape = (heads, count, probes * kept)
        self._done = 0

    @property
    def remain(self) -> int:
        """Lists that are still to be read."""
        return len(self._asked_of) - self._done

    def candidates(self) -> Found:
        """Of each query, the best of each of its lists."""
        return self._scores.view(self._shape), self._slots.view(self._shape)

    def block(self, left: int) -> int:
        """Reads some lists; returns the multiply-adds."""
        begin, dim = self._done, self._queries.shape[1]
        asked, width, end = self._asked_of[begin], 0, begin
        while end < len(self._asked_of):
            wider = max(width, self._stored_of[end])
            size = (end + 1 - begin) * wider * max(dim, asked)
            too_much = 4 * size > BLOCK_BYTES_MAX or (end + 1 - begin) * wider * asked * dim > left
            if end > begin and (too_much or 2 * self._asked_of[end] < asked):
                break
            width, end = wider, end + 1
        self._done = end
        if width:
            self._read(slice(begin, end), asked, width)
        return (end - begin) * work.searched(asked, max(1, width), dim)

    def _read(self, part: slice, asked: int, width: int) -> None:
        rows, per_head = self._lists.rows, self._lists.centroids.shape[1]
        row = self._row[part]
        device = row.device
        column, query = torch.arange(width, device=device), torch.arange(asked, device=device)
        place = (rows.first.flatten()[row][:, None] + column) % rows.places  # [B, W]
        slots = rows.slots.flatten(0, 1)[row[:, None], place].long()
        present = column < rows.count.flatten()[row][:, None]
        block = self._keys[(row // per_head)[:, None], slots]  # [B, W, D]
        asks = query < self._asked[part][:, None]  # [B, Q]
        at = (self._first[part][:, None] + query).clamp(max=self._order.numel() - 1)
        pair = self._order[at]
        scores = products(self._queries[pair // self._probes], block)  # [B, Q, W]
        scores.masked_fill_(~present[:, None, :], float("-inf"))
        best, order = scores.topk(min(self._scores.shape[1], width), dim=-1)
        chosen = slots[:, None, :].expand_as(scores).gather(-1, order)
        self._scores[pair[asks], : best.shape[-1]] = best[asks]
        self._slots[pair[asks], : best.shape[-1]] = chosen[asks]


def _spilled(lists: Lists, queries: Tensor, keys: Tensor, top_k: int) -> tuple[Found, int]:
    spill = lists.spill
    width = int(spill.count.max())
    if not width:
        return empty(queries, top_k), 0
    heads, count, dim = queries.shape
    column = torch.arange(width, device=queries.device)
    slots = spill.slots[:, 0].gather(1, (spill.first + column) % spill.places).long()  # [H, W]
    block = keys[torch.arange(heads, device=queries.device)[:, None], slots]
    best = empty(queries, top_k)
    size = max(1, BLOCK_BYTES_MAX // (4 * heads * width))
    for first in range(0, count, size):
        part = slice(first, first + size)
        scores = products(queries[:, part], block)
        scores.masked_fill_(~(column < spill.count)[:, None, :], float("-inf"))
        best[0][:, part], best[1][:, part] = best_of(scores, slots[:, None, :].expand_as(scores), top_k)
    return best, heads * work.searched(count, width, dim)
