"""Inverted lists over the keys of one head: entries by nearest centroid, slots in place of copies of keys.

Entries are put into lists in the background; until then they are pending, and every query is multiplied with
them. So a write is searchable at once, and a file that lags behind is slower, not wrong. Entries that fit
into no list stay so (`strangers.py`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from recollect_server.domain import work
from recollect_server.domain.arrays import Float32, Int64, Raw, to_float32
from recollect_server.domain.spec import Dtype
from recollect_server.domain.steps import Steps
from recollect_server.engine import codes, kernels
from recollect_server.engine.costs import (
    ALONE,
    CALL,
    CENTROID,
    PAIR,
    PRODUCT,
    ROW,
    SELECT,
    exact_work,
    rows_in,
)
from recollect_server.engine.kernel_lists import Lists, Probing, multiply_centroids
from recollect_server.engine.kmeans import lists_for
from recollect_server.engine.ranges import Ranges, common, length_of, placed, those_where
from recollect_server.engine.reach import KEPT, Reach
from recollect_server.engine.scan import in_turns, scan_in_turns
from recollect_server.engine.strangers import TOLD, Strangers

NEAREST, NEAREST_MORE = 8, 256
"""Times top_k, or twice that and so many more: so many entries show how good a candidate has to be."""

TINY = np.finfo(np.float32).tiny

MARGIN, CAUTION = 0.25, 0.65
"""Of what the asked recall leaves to chance, so much is kept in reserve: what is measured is a sample. Or
so many standard errors, as of queries that are found or not, if that is more."""

TOO_MUCH = 1.25
"""Times the work of exact search: lists that would take more are not looked into."""

TOGETHER = 512
"""Entries of which it is said whether they are strangers, at most."""

MOVED_TOGETHER, MOVED = 4096, 6_000
"""Entries that lists follow in one step, and what it takes for each."""

LEAST = 0.05
"""Of what the asked recall leaves to chance: few queries may ask for no less."""

REMEMBERED = 256
"""Queries that are told apart: the same one again says nothing new."""

GROWN, FADED = 1.3, 0.1
"""With so many times the entries, or as many times fewer, lists are judged anew; how much earlier samples
count then."""

DOUBTED, AGAIN = 1.5, 1.2
"""Where that has not come to pass with so many times the entries they are doubted until it does: what looks
farther takes twice the time. And again with so many times more, each time."""


class InvertedFile:
    """The lists of one head.

    A query looks into lists by how far it has to reach there for what is better than what it has found so
    far: beyond their centroids, in radii of the list. How far it goes is learnt from where true hits were.

    Args:
        centroids: [L, D].
        radii: [L], root mean square distances of keys to their centroids.
        slots: Of the buffer.
        entries: How many there are now.
    """

    def __init__(self, centroids: Float32, radii: Float32, slots: int, *, entries: int) -> None:
        self.centroids = centroids
        self.trained_on = entries
        self.written = 0  # since then
        self.pending = Ranges()
        self.probes = len(centroids)  # on average
        self.probes_at_first = 0
        self.probes_hoped = len(centroids)  # were it known better what is enough
        self.judged = 0  # times that it was settled, with about as many entries
        self._judged_with = self._doubted_with = entries
        self._is_judged_anew = False
        self._lists = Lists(len(centroids), slots)
        self._half_norms = -0.5 * np.einsum("ld,ld->l", centroids, centroids)
        self._radii = np.ones(-(-len(centroids) // 32) * 32, dtype=np.float32)
        self._radii[: len(centroids)] = np.maximum(radii, TINY)
        self._reaches: dict[int, Reach] = {}  # of top_k = 1, 2, 4, ...
        self._asked = 1  # the largest of these of late
        self._told: deque[int] = deque(maxlen=REMEMBERED)
        self._typical = entries / len(centroids)
        self.strangers = Strangers(entries)
        self._codes = codes.Codes(centroids, slots) if centroids.shape[1] >= codes.DIM_MIN else None

    @property
    def bytes(self) -> int:
        """What it takes."""
        arrays = self.centroids.nbytes + self._half_norms.nbytes + self._radii.nbytes
        coded = 0 if self._codes is None else self._codes.bytes
        return int(self._lists.bytes + arrays + coded + sum(reach.bytes for reach in self._reaches.values()))

    @property
    def is_trusted(self) -> bool:
        """Whether it answers searches: it knows where not to look."""
        return self.probes < len(self.centroids)

    def clear(self) -> None:
        """Zeroes what was made of keys; the file must not be used after."""
        self.centroids.fill(0)
        self._half_norms.fill(0)
        if self._codes is not None:
            self._codes.clear()

    def wrote(self, slots: slice) -> None:
        """The entries of these slots are new."""
        self._lists.put(slots.start, np.full(slots.stop - slots.start, -1, dtype=np.int64))
        self.pending.add(slots)
        self.strangers.slots.remove(slots)
        self.written += slots.stop - slots.start

    def moving(self, order: Int64 | None, slots: int, *, head: int) -> Steps[None]:
        """Follows entries of slots `order` (None: of all) to those from `head` on, in a buffer of `slots`."""
        yield 0
        if self._codes is not None:
            yield from self._codes.moving(order, slots, head=head)
        if order is None:
            self._lists.extend(slots)
            return
        lists = Lists(len(self.centroids), slots)
        assigned = self._lists.of_slots()[order].astype(np.int64)
        pending = Ranges()
        for part, place in placed(order.size, slots, head=head, most=MOVED_TOGETHER):
            lists.put(place, assigned[part])
            for out in those_where(assigned[part] < 0, first=place):
                pending.add(out)
            yield (part.stop - part.start) * MOVED
        self._lists, self.pending, self.strangers.slots = lists, pending, Ranges()

    def assign(self, keys: Raw, dtype: Dtype, *, step: int) -> int:
        """Puts some pending entries of keys [slots, D] into lists, in one step; returns what that took."""
        part = self.pending.take(min(TOGETHER, rows_in(step, self.centroids.size)))
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
        scores, lists = best.ordered()
        took = int((part.stop - part.start + work.READ_AS_QUERIES) * self.centroids.size)
        if self._are_strangers(keys[part], dtype, scores[:, 0], lists[:, 0]):
            self.strangers.slots.add(part)
            return took
        assigned = np.ascontiguousarray(lists[:, 0])
        self._lists.put(part.start, assigned)
        if self._codes is not None:
            self._codes.put(part.start, assigned, keys, dtype)
        sizes = self._lists.sizes().astype(np.float64)
        # Of the lists that hold an entry: larger ones hold more of them, and more of what is asked for.
        self._typical = float((sizes**2).sum() / max(1.0, sizes.sum()))
        return took

    def _are_strangers(self, keys: Raw, dtype: Dtype, scores: Float32, lists: Int64) -> bool:
        """Whether keys [n, D] are, of nearest lists [n] and products with those less half their norms [n]."""
        some = slice(None, None, max(1, len(keys) // TOLD))
        sampled = to_float32(keys[some], dtype).astype(np.float64)
        squares = np.maximum(np.einsum("nd,nd->n", sampled, sampled) - 2 * scores[some], 0)
        distances = np.sqrt(squares) / self._radii[lists[some]]
        return self.strangers.are(distances, of=len(keys))

    def is_worn(self, entries: int) -> bool:
        """Whether other lists would be better for so many entries, or for those that there are now."""
        lists, wanted = len(self.centroids), lists_for(entries)
        drifted = self.probes > 2 * self.probes_at_first + 2 and self.written > self.trained_on // 2
        return wanted >= 2 * lists or 4 * wanted <= lists or drifted or self.strangers.are_many(entries)

    def search_work(self, queries: int, entries: int, *, probes: int | None = None) -> int:
        """What a search takes, in multiply-adds; or would take, if it looked into so many lists."""
        dim, probes = self.centroids.shape[1], probes or self.probes
        each = self._work_of_query(min(probes, self._nearest(self._asked)))
        chosen = (
            self._work_of_codes(queries, probes)
            if self._codes
            else self._work_of_keys(queries, entries, probes)
        )
        outside = len(self.pending) + len(self.strangers.slots)
        return int(CALL + queries * each + chosen + work.searched(queries, outside, dim) * (outside > 0))

    def _work_of_keys(self, queries: int, entries: int, probes: int) -> float:
        """Of looking into the lists that are chosen, where keys are read."""
        lists, dim = self.centroids.shape
        touched = entries * (1 - (1 - min(1.0, probes / lists)) ** queries)
        each = probes * (PAIR + self._typical * (PRODUCT * dim + SELECT))
        return float(queries * each + touched * ROW * dim)

    def _work_of_codes(self, queries: int, probes: int) -> float:
        """The same, where codes are."""
        coded = 0 if self._codes is None else self._codes.work(probes * self._typical)
        return queries * (probes * PAIR + coded)

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
        probing = self._probing(best, queries, keys, dtype, live, reach=self._reach_of(top_k))
        each = self._work_of_query(self._nearest(top_k))
        left = yield from in_turns(np.arange(1, count + 1) * each, left, probing.ask_nearest)
        if self._work_of_chosen(probing, dim) > TOO_MUCH * exact_work(count, length_of(live), dim):
            # Queries unlike those that were learnt from: any list may hold what is better than their nearest.
            best = kernels.Best(count, top_k)
            scan = scan_in_turns(best, queries[None], keys[None], Dtype.FLOAT32, dtype, parts=live, left=left)
            yield from scan
            return best.ordered()
        if self._codes is not None:
            ask = partial(
                self._codes.ask,
                best,
                queries,
                keys,
                dtype=dtype,
                live=live,
                chosen=probing.chosen,
                lists=self._lists,
            )
            each = self._work_of_codes(1, self.probes)
            left = yield from in_turns(np.arange(1, count + 1) * each, left, ask)
        elif probing.order():
            left = yield from in_turns(self._work_of_lists(probing.counts, dim), left, probing.ask)
        # Last, when there is something to compare them with.
        outside = common((*self.pending, *self.strangers.slots), live)
        scan = scan_in_turns(best, queries[None], keys[None], Dtype.FLOAT32, dtype, parts=outside, left=left)
        yield from scan
        return best.ordered()

    def _work_of_chosen(self, probing: Probing, dim: int) -> float:
        """What it takes to look into all lists that queries chose, beside their nearest."""
        chosen = int(np.bitwise_count(probing.chosen).sum())
        if self._codes is not None:
            return self._work_of_codes(1, chosen)
        return chosen * (PAIR + self._typical * (PRODUCT * dim + SELECT))

    def learn(self, queries: Float32, hits: Int64, *, keys: Raw, dtype: Dtype, live: Sequence[slice]) -> None:
        """Learns from queries [N, D] and what exact search found for them, [N, K], where hits are.

        Args:
            queries: Float32.
            hits: -1 for none.
            keys: [slots, D], of `dtype`.
            dtype: Of keys.
            live: Slots that count.
        """
        top_k = hits.shape[1]
        self._told.extend(hash(query.tobytes()) for query in queries)
        best = kernels.Best(len(queries), top_k)
        self._probing(best, queries, keys, dtype, live, reach=np.inf).ask_nearest(slice(0, len(queries)))
        scores = best.ordered()[0]
        products = multiply_centroids(np.ascontiguousarray(queries), self.centroids)  # [N, L]
        size = np.linalg.norm(queries, axis=1)[:, None] * self._radii[: len(self.centroids)] + TINY
        found = hits >= 0
        lists = self._lists.of_slots()[np.where(found, hits, 0)]
        at = np.where(lists >= 0, lists, 0)
        # Of a smaller top_k the hits are the first of these, and a candidate has to be better.
        for asked in (2**i for i in range(top_k.bit_length())):
            far = (scores[:, asked - 1, None] - products) / size
            of_hits = np.take_along_axis(far, at, axis=1)[:, :asked]  # [N, K]
            of_hits[lists[:, :asked] < 0] = -np.inf  # pending entries are always looked at
            reach = self._reaches.setdefault(asked, Reach())
            # (Where too little was found there is hardly anything in the lists.)
            reach.learn(of_hits[found[:, :asked]], np.where(np.isfinite(far), far, np.inf))
            self._asked = asked
        if self._codes is not None:
            slots = np.where(found & (lists >= 0), hits, -1)
            its = to_float32(keys[np.where(found, hits, 0)], dtype)  # [N, K, D]
            own = np.where(found, np.einsum("nd,nkd->nk", queries, its), -np.inf)
            self._codes.learn(queries, slots, own, np.take_along_axis(products, at, axis=1))

    @property
    def is_doubted(self) -> bool:
        """Whether it looks farther than it would need to, since it has grown and is not judged yet."""
        return self._is_judged_anew or self._doubted_with != self._judged_with

    def is_out_of_date(self, entries: int) -> bool:
        """Whether so many entries are others than those with which it was judged: it was learnt of those."""
        return not self._judged_with / GROWN < entries < self._judged_with * GROWN

    def doubt(self, recall: float, *, entries: int) -> None:
        """Looks farther until it is judged, where it has grown by much: by as much as that, at least."""
        if entries >= self._judged_with * DOUBTED and entries > self._doubted_with * AGAIN:
            self._doubted_with = entries
            self._told.clear()
            self._aim(recall, farther=math.sqrt(entries / self._judged_with))

    def begin_judging(self, entries: int) -> None:
        """What was learnt with fewer entries, or more, counts for little."""
        if self.is_out_of_date(entries):
            self._is_judged_anew = True
            self.judged, self._judged_with, self._doubted_with = 0, entries, entries
            self._told.clear()
            for reach in self._reaches.values():
                reach.fade(FADED)

    def settle(self, recall: float) -> None:
        """Reaches as far as what was learnt says; it will count for less next time."""
        self._aim(recall)
        self._is_judged_anew, self._doubted_with = False, self._judged_with
        for reach in self._reaches.values():
            reach.fade(KEPT)
        if self._codes is not None:
            self._codes.fade()
        self.probes_at_first = self.probes_at_first or self.probes
        self.judged += 1

    def _aim(self, recall: float, *, farther: float = 1.0) -> None:
        error = math.sqrt(recall * (1 - recall) / max(1, len(set(self._told))))
        least = recall + MARGIN * (1 - recall)
        wanted = min(max(least, recall + CAUTION * error), 1 - LEAST * (1 - recall))
        of_codes = 1.0 if self._codes is None else self._codes.settle(wanted)
        for reach in self._reaches.values():
            reach.settle(wanted / of_codes, farther=farther)
        asked = self._reaches.get(self._asked)
        self.probes = self._lists_in(1.0 if asked is None else asked.share)
        self.probes_hoped = self._lists_in(1.0 if asked is None else asked.needed(least / of_codes)[1])

    def _lists_in(self, share: float) -> int:
        return min(len(self.centroids), max(1, round(share * len(self.centroids))))

    def _reach_of(self, top_k: int) -> float:
        """How far to go, in radii: what was learnt of as many candidates, or of fewer, which is farther."""
        learnt = [asked for asked in self._reaches if asked <= top_k]
        return self._reaches[max(learnt)].far if learnt else np.inf

    def _probing(
        self,
        best: kernels.Best,
        queries: Float32,
        keys: Raw,
        dtype: Dtype,
        live: Sequence[slice],
        *,
        reach: float,
    ) -> Probing:
        return Probing(
            self._lists,
            best,
            queries=queries,
            centroids=self.centroids,
            radii=self._radii,
            keys=keys,
            dtype=dtype,
            live=live,
            nearest=self._nearest(best.top_k),
            reach=reach,
        )

    def _nearest(self, top_k: int) -> int:
        """How many lists a query considers by itself."""
        entries = min(NEAREST * top_k, 2 * top_k + NEAREST_MORE)
        return min(len(self.centroids), max(2, round(entries / max(1.0, self._typical))))

    def _work_of_query(self, nearest: int) -> float:
        """What a query takes by itself."""
        lists, dim = self.centroids.shape
        return float(dim * (lists * CENTROID + nearest * self._typical * ALONE))

    def _work_of_lists(self, askers: NDArray[np.int32], dim: int) -> NDArray[np.float64]:
        sizes = self._lists.sizes()
        of_rows = sizes * (askers * (PRODUCT * dim + SELECT) + (askers > 0) * float(ROW * dim))
        cumulative: NDArray[np.float64] = np.cumsum(askers * float(PAIR) + of_rows)
        return cumulative
