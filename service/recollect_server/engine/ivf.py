"""Inverted lists over the keys of one head: entries by nearest centroid, slots in place of copies of keys.

Entries are put into lists in the background; until then they are pending, and every query is multiplied with
them. So a write is searchable at once, and a file that lags behind is slower, not wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from recollect_server.domain import work
from recollect_server.domain.arrays import Float32, Int64, Raw
from recollect_server.domain.spec import Dtype
from recollect_server.domain.steps import Steps
from recollect_server.engine import kernels
from recollect_server.engine.kernel_lists import Lists, Plan
from recollect_server.engine.ranges import Ranges, common

CALL = 8_000_000
"""Multiply-adds that a search takes as long as, apart from what follows (measured, as the others)."""

SELECT = 140
"""Of comparing a query with one centroid, beyond the product."""

PAIR = 12_000
"""Of looking with one query into one list, beyond the products."""

ROW = 30
"""To gather a key and lay it out takes as long as to multiply it with so many queries (measured)."""

ALONE = 4
"""To multiply a key with one query takes as long as so many products where queries share it (measured)."""

FIRST = 4
"""Times top_k: so many entries show how good a candidate has to be."""

MARGIN = 0.25
"""Of what the asked recall leaves to chance, so much is kept in reserve: what is measured is a sample."""

KEPT = 0.8
"""How much earlier samples still count when new ones come."""


class InvertedFile:
    """The lists of one head.

    Args:
        centroids: [L, D].
        slots: Of the buffer.
        entries: How many there are now.
    """

    def __init__(self, centroids: Float32, slots: int, *, entries: int) -> None:
        self.centroids = centroids
        self.trained_on = entries
        self.written = 0  # since then
        self.pending = Ranges()
        self.probes = len(centroids)
        self.probes_at_first = 0
        self._lists = Lists(len(centroids), slots)
        self._half_norms = -0.5 * np.einsum("ld,ld->l", centroids, centroids)
        self._ranks = np.zeros(len(centroids) + 1, dtype=np.float64)
        self._typical = entries / len(centroids)

    @property
    def bytes(self) -> int:
        """What it takes."""
        return int(self._lists.bytes + self.centroids.nbytes + self._ranks.nbytes + self._half_norms.nbytes)

    def clear(self) -> None:
        """Zeroes what was made of keys; the file must not be used after."""
        self.centroids.fill(0)
        self._half_norms.fill(0)

    def wrote(self, slots: slice) -> None:
        """The entries of these slots are new."""
        self._lists.put(slots.start, np.full(slots.stop - slots.start, -1, dtype=np.int64))
        self.pending.add(slots)
        self.written += slots.stop - slots.start

    def moved(self, order: Int64, slots: int) -> None:
        """The entries of slots `order` lie from slot 0 on now, in a buffer of `slots`."""
        lists = Lists(len(self.centroids), slots)
        assigned = self._lists.of_slots()[order].astype(np.int64)
        lists.put(0, assigned)
        self._lists, self.pending = lists, Ranges()
        edges = np.flatnonzero(np.diff(np.concatenate([[0], assigned < 0, [0]]).astype(np.int8)))
        for first, last in edges.reshape(-1, 2).tolist():
            self.pending.add(slice(first, last))

    def assign(self, keys: Raw, dtype: Dtype, most: int) -> int:
        """Puts at most `most` pending entries of keys [slots, D] into lists; returns what that took."""
        part = self.pending.take(most)
        best = kernels.Best(part.stop - part.start, 1)
        kernels.scan(
            best,
            keys[None, part],
            self.centroids[None],
            query_dtype=dtype,
            key_dtype=Dtype.FLOAT32,
            rows=slice(0, len(self.centroids)),
            bias=self._half_norms,
        )
        self._lists.put(part.start, np.ascontiguousarray(best.ordered()[1][:, 0]))
        sizes = self._lists.sizes().astype(np.float64)
        # Of the lists that hold an entry: larger ones hold more of them, and more of what is asked for.
        self._typical = float((sizes**2).sum() / max(1.0, sizes.sum()))
        return int((part.stop - part.start + work.READ_AS_QUERIES) * self.centroids.size)

    def search_work(self, queries: int, entries: int) -> int:
        """What a search takes, in multiply-adds."""
        lists, dim = self.centroids.shape
        probed = min(1.0, self.probes / lists)
        touched = entries * (1 - (1 - probed) ** queries)
        asked = queries * self.probes
        return int(
            CALL
            + work.searched(queries, lists, dim + SELECT)
            + asked * PAIR
            + touched * ROW * dim
            + asked * self._typical * dim
            + work.searched(queries, len(self.pending), dim) * bool(self.pending)
        )

    def search(
        self, queries: Float32, keys: Raw, dtype: Dtype, *, live: Sequence[slice], top_k: int
    ) -> Steps[tuple[Float32, Int64]]:
        """The best entries of the lists that are nearest to each query, and of those pending.

        Args:
            queries: [N, D], contiguous.
            keys: [slots, D].
            dtype: Of keys.
            live: Slots that count.
            top_k: K.

        Returns:
            Scores [N, K] and slots [N, K], as `kernels.Best.ordered`.
        """
        count, dim = queries.shape
        left = yield 0
        best = kernels.Best(count, top_k)
        plan = Plan(queries, self.centroids, self.probes, first=self._first(top_k))
        left = yield work.searched(count, len(self.centroids), dim + SELECT)
        probing = self._lists.probe(best, plan, keys, dtype=dtype, live=live)
        alone = plan.first * (PAIR + ALONE * self._typical * dim)
        left = yield from _in_turns(np.arange(1, count + 1) * alone, left, probing.ask_first)
        if plan.askers.size:
            yield from _in_turns(self._work_of_lists(plan.offsets, dim), left, probing.ask)
        # Last, when there is something to compare them with.
        for part in common(self.pending, live):
            scan_exactly(best, queries[None], keys[None], query_dtype=Dtype.FLOAT32, dtype=dtype, rows=part)
            yield work.searched(count, part.stop - part.start, dim)
        return best.ordered()

    def learn(self, queries: Float32, hits: Int64) -> float:
        """Learns from queries [N, D] and what exact search found for them, [N, K], where hits are.

        Returns:
            The recall that they have had with as many probes as there are.
        """
        found = hits >= 0
        lists = self._lists.of_slots()[np.where(found, hits, 0)]
        ordered = queries @ self.centroids.T  # [N, L]
        of_list = np.take_along_axis(ordered, np.where(lists >= 0, lists, 0), axis=1)  # [N, K]
        ordered.sort(axis=1)
        below = [np.searchsorted(row, mine, side="right") for row, mine in zip(ordered, of_list, strict=True)]
        ranks = len(self.centroids) - np.array(below)  # how many lists are nearer
        ranks = np.where(lists >= 0, ranks, 0)[found]  # pending entries are always looked at
        np.add.at(self._ranks, ranks, 1.0)
        return float((ranks < self.probes).mean()) if ranks.size else 1.0

    def settle(self, recall: float) -> None:
        """Probes as many lists as what was learnt says; it will count for less next time."""
        self.probes = self.probes_for(recall)
        self.probes_at_first = self.probes_at_first or self.probes
        self._ranks *= KEPT

    def probes_for(self, recall: float) -> int:
        """Lists to look into so that so much is found."""
        total = self._ranks.sum()
        if not total:
            return len(self.centroids)
        wanted = recall + MARGIN * (1 - recall)
        enough = int(np.searchsorted(self._ranks.cumsum(), wanted * total)) + 1
        return min(len(self.centroids), enough)

    def _first(self, top_k: int) -> int:
        """How many lists a query looks into by itself."""
        first = max(2, round(FIRST * top_k / max(1.0, self._typical)))
        return self.probes if self.probes <= 2 * first else first

    def _work_of_lists(self, offsets: Int64, dim: int) -> NDArray[np.float64]:
        askers, sizes = np.diff(offsets), self._lists.sizes()
        cumulative: NDArray[np.float64] = np.cumsum(
            askers * float(PAIR) + (askers + ROW) * (askers > 0) * sizes * float(dim)
        )
        return cumulative


def _in_turns(
    cumulative: NDArray[np.float64], left: int, do: Callable[[slice], None]
) -> Generator[int, int, int]:
    """Does parts of what takes so much, up to and with each; returns what the next step may take."""
    first, done = 0, 0.0
    while first < len(cumulative):
        reached = int(np.searchsorted(cumulative, done + left, side="right"))
        part = slice(first, min(len(cumulative), max(first + 1, reached)))
        do(part)
        left = yield int(cumulative[part.stop - 1] - done)
        first, done = part.stop, float(cumulative[part.stop - 1])
    return left


def scan_exactly(
    best: kernels.Best, queries: Raw, keys: Raw, *, query_dtype: Dtype, dtype: Dtype, rows: slice
) -> None:
    """Every row of keys [heads, slots, D] in `rows`, for queries [heads, n, D]."""
    kernels.scan(best, queries, keys, query_dtype=query_dtype, key_dtype=dtype, rows=rows)
