"""When a bank's inverted files are made, kept and judged: in the background, a little at a time."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np

from recollect_server.domain import work
from recollect_server.domain.arrays import Float32, Int64, Raw
from recollect_server.domain.ports import IndexState
from recollect_server.domain.spec import Dtype, IndexChoice, NamespaceSpec
from recollect_server.domain.steps import Steps, in_steps
from recollect_server.engine import kernels, reasons
from recollect_server.engine.choice import Choice
from recollect_server.engine.costs import exact_work, rows_in
from recollect_server.engine.ivf import InvertedFile
from recollect_server.engine.kmeans import centroids_of, fill, lists_for
from recollect_server.engine.patience import Patience
from recollect_server.engine.ranges import length_of
from recollect_server.engine.recall import recall_of, those_in
from recollect_server.engine.samples import SAMPLES, Samples

ENTRIES_MIN = {IndexChoice.AUTO: 16_384, IndexChoice.IVF: 1_024}
"""Fewer are searched exactly: there is nothing to be gained."""

STEP = 34_000_000
"""Multiply-adds of one step of upkeep: half a millisecond at most. 512 keys and 1,024 lists are one."""

SLICE = 8 * STEP
"""Of one turn; then the bank's own calls have theirs."""

PENDING_MIN = 512
"""So many entries are put into lists at once."""

TRAINED_PER_LIST = 24
"""Keys of a sample for each list."""

SAMPLE_BYTES_MAX = 128 * 1024 * 1024
"""Of the sample, in float32."""

SAMPLES_MIN = 16
"""Queries of a head that are compared with exact search at once, at least."""

JUDGED_ANEW = 4
"""How often to compare again, at most, because entries have moved meanwhile."""

ASKED = (1, 4, 16, 64, 512)
"""Numbers of queries: lists are kept where they are faster for one of them."""

COMPARED = 0.03
"""Of the work of searches, so much may go into comparing, as estimated. Measured, it is a twelfth."""

JUDGED_SURE = 4
"""So often new lists are compared whatever that takes: less than a tenth of what it took to make them. Few
queries tell little, and the reserve for that makes lists look slower than they will be: until then none are
given up that would be of use without it."""

BEHIND = 8 * PENDING_MIN
"""So many that wait are worth telling."""

_NO_KEYS: Raw = np.empty((0, 0, 0), dtype=np.float32)


class Index:
    """The inverted files of one bank, one for each head; none where exact search is the better choice.

    Args:
        spec: Of its namespace.
    """

    def __init__(self, spec: NamespaceSpec) -> None:
        self._spec = spec
        self._files: list[InvertedFile | None] = [None] * spec.heads
        self._growing: InvertedFile | None = None
        self.choice = Choice()
        self._trains = False
        self._job: Generator[int, None, None] | None = None
        self._samples = [Samples() for _ in range(spec.heads)]
        # Work of searches since the last comparison. Of each head: else some would have it all.
        self._searched = [0] * spec.heads
        self._patience = [Patience() for _ in range(spec.heads)]
        self._sampled, self._found = 0, 0.0
        self._recall = None if spec.recall < 1 else 1.0
        self._too_few = False
        self._moves = 0  # times that entries came to other slots
        self._keys: Raw = _NO_KEYS
        self._bytes = self._sample_bytes = 0
        self._live: Sequence[slice] = ()

    @property
    def state(self) -> IndexState:
        """See `Store.index_state`."""
        files = [file for file in self._files if file is not None]
        if not files or self._too_few:
            return IndexState(
                recall=self._recall, sampled=self._sampled, found=self._found, reason=self._reason()
            )
        return IndexState(
            index="ivf",
            lists=len(files[0].centroids),
            probes=max(file.probes for file in files),
            recall=self._recall,
            sampled=self._sampled,
            found=self._found,
            reason=self._under_way(files),
        )

    def _under_way(self, files: Sequence[InvertedFile]) -> str:
        """What is not yet as it will be."""
        if self._trains:
            return reasons.BEING_MADE
        if max(len(file.pending) for file in files) > BEHIND:
            return reasons.BEING_FILLED
        if any(file.strangers.are_some(file.trained_on) for file in files):
            return reasons.STRANGERS
        return reasons.BEING_JUDGED if any(file.is_doubted for file in files) else ""

    def clear(self) -> None:
        """Zeroes what was made of keys and queries; the index must not be used after."""
        if self._job is not None:
            self._job.close()
        for file in self._all_files():
            file.clear()
        for samples in self._samples:
            samples.clear()

    @property
    def has_files(self) -> bool:
        """Whether there are any, or will be."""
        return bool(self._all_files())

    @property
    def bytes(self) -> int:
        """What the files take, and the sample of one that is being made; as of the last change but an add."""
        return self._bytes

    def _count(self) -> None:
        self._bytes = sum(file.bytes for file in self._all_files()) + self._sample_bytes

    def file_for(
        self, head: int, queries: int, entries: int, *, is_asked: bool = False
    ) -> InvertedFile | None:
        """The file that should answer, or does now if it is asked; None if exact search is faster."""
        file = self._files[head]
        if file is None or not file.is_trusted:
            return None
        if entries < ENTRIES_MIN[self._spec.index]:  # evicted since: nothing compares so few any more
            return None
        if self._spec.index is IndexChoice.IVF:
            return file
        lists, exact = file.search_work(queries, entries), exact_work(queries, entries, self._spec.key_dim)
        decide = self.choice.takes_lists if is_asked else self.choice.prefers_lists
        return file if decide(queries, exact=exact, lists=lists) else None

    def is_too_small(self, entries: int) -> bool:
        """Whether there are so few entries that they are searched exactly, and nothing is learnt from it."""
        self._too_few = entries < ENTRIES_MIN[self._spec.index]
        return self._too_few

    def searched(self, head: int, queries: Raw, top_k: int, *, dtype: Dtype, cost: int) -> None:
        """Notes a search where lists may be of use, and keeps a few of its queries [N, D] to compare."""
        if self._spec.recall >= 1:
            return
        self._searched[head] += cost
        self._samples[head].add(queries, top_k, dtype=dtype)

    def wrote(self, slots: slice) -> None:
        """The entries of these slots are new."""
        for file in self._all_files():
            file.wrote(slots)
        for patience in self._patience:
            patience.wrote(slots.stop - slots.start)

    def moved(self, order: Int64 | None, slots: int) -> None:
        """The entries of slots `order` (None: of all) lie from slot 0 on now, in a buffer of `slots`."""
        self._moves += order is not None
        for file in self._all_files():
            file.moved(order, slots)
        self._count()

    # ---- background ----

    def upkeep_work(self, live: Sequence[slice]) -> int:
        """See `Store.upkeep_work`: at most a slice."""
        entries = length_of(live)
        if self._spec.recall >= 1 or entries < ENTRIES_MIN[self._spec.index]:
            return 0
        if self._job is not None:
            return SLICE
        work_of_each = (self._work_of_next(head, entries) for head in range(self._spec.heads))
        # Of the first that has some: what is added is added to all.
        return min(SLICE, self._spec.heads * next(filter(None, work_of_each), 0))

    def _work_of_next(self, head: int, entries: int) -> int:
        file, task = self._files[head], self._task(head, entries)
        if file is not None and task == self._assign:
            return len(file.pending) * file.centroids.size
        return 0 if task is None else SLICE

    def upkeep(self, keys: Raw, live: Sequence[slice]) -> Steps[bool]:
        """A slice of what there is to do on keys [heads, slots, D]; whether there is more."""
        yield 0
        for file in self._all_files():
            file.strangers.keep(live)
        done, left, self._keys, self._live = 0, self.upkeep_work(live), keys, live
        try:
            while left and done < SLICE:
                took = self._work()
                done += took
                yield took
                left = self.upkeep_work(live)
        except Exception:  # a defect: what was begun is not gone on with
            self._growing, self._trains, self._job = None, False, None
            raise
        finally:
            self._count()
            self._keys = _NO_KEYS  # a slice would keep a buffer that the bank has outgrown
        return left > 0

    def _work(self) -> int:
        """Goes on with the job that there is, or the next one; what it took."""
        self._job = self._job or self._next_job()
        took = None if self._job is None else next(self._job, None)
        if took is None:
            self._trains, self._job = False, None
        return took or 0

    def _next_job(self) -> Generator[int, None, None] | None:
        entries = length_of(self._live)
        tasks = ((head, self._task(head, entries)) for head in range(self._spec.heads))
        return next((task(head) for head, task in tasks if task is not None), None)

    def _task(self, head: int, entries: int) -> Callable[[int], Generator[int, None, None]] | None:
        """What is to be done for a head."""
        file, samples = self._files[head], self._samples[head]
        seen_enough = len(samples) >= SAMPLES_MIN // 2  # without queries, new lists cannot be judged
        if file is None:
            return self._train if seen_enough and self._patience[head].is_over(entries) else None
        if len(file.pending) >= PENDING_MIN:
            return self._assign
        compares = len(samples) >= SAMPLES_MIN and samples.fresh > 0
        if file.is_out_of_date(entries):  # before new lists: those take a while, and recall is due now
            return self._compare if compares else None
        if file.is_worn(entries):
            return self._train if seen_enough else None
        cost = len(samples) * entries * self._spec.key_dim
        cost += file.search_work(len(samples), entries) - file.search_work(0, entries)  # not one by itself
        is_new = file.judged < JUDGED_SURE and len(samples) == SAMPLES
        return self._compare if compares and (is_new or cost <= COMPARED * self._searched[head]) else None

    def _assign(self, head: int) -> Generator[int, None, None]:
        file = self._files[head]
        while file is not None and len(file.pending):
            file.doubt(self._spec.recall, entries=length_of(self._live))
            yield file.assign(self._keys[head], self._spec.dtype, step=STEP)

    def _train(self, head: int) -> Generator[int, None, None]:
        entries, dim = length_of(self._live), self._spec.key_dim
        lists, self._trains = lists_for(entries), True
        self._note_change(head, entries)
        size = min(entries, TRAINED_PER_LIST * lists, SAMPLE_BYTES_MAX // (4 * dim))
        sample = np.zeros((size, dim), dtype=np.float32)
        self._sample_bytes = sample.nbytes
        try:
            yield from fill(sample, lambda: (self._keys[head], self._live), self._spec.dtype)
            centroids, radii = yield from centroids_of(sample, lists, rows=rows_in(STEP, lists * dim))
        finally:
            sample.fill(0)
            self._sample_bytes = 0
        del sample
        file = InvertedFile(centroids, radii, self._keys.shape[1], entries=entries)
        for part in self._live:
            file.pending.add(part)
        self._growing = file
        while len(file.pending) > PENDING_MIN:
            yield file.assign(self._keys[head], self._spec.dtype, step=STEP)
        if file.pending:
            yield file.assign(self._keys[head], self._spec.dtype, step=STEP)
        yield from self._judge(head, file)
        self._growing = None
        if self._is_useful(file, length_of(self._live)):
            self._use(head, file)
            self._patience[head].succeeded()
        else:
            file.clear()
            self._give_up(head, entries)

    def _use(self, head: int, new: InvertedFile | None) -> None:
        old = self._files[head]
        if old is not None:
            old.clear()
        self._files[head] = new

    def _give_up(self, head: int, entries: int) -> None:
        self._note_change(head, entries)
        self._use(head, None)
        self._patience[head].gave_up(entries)

    def _note_change(self, head: int, entries: int) -> None:
        file = self._files[head]
        if file is not None and file.strangers.are_some(entries):
            self._patience[head].keys_change()

    def _is_useful(self, file: InvertedFile, entries: int) -> bool:
        probes = file.probes_hoped if file.judged < JUDGED_SURE else file.probes
        if self._spec.index is IndexChoice.IVF:
            return 2 * probes <= len(file.centroids)
        dim = self._spec.key_dim
        return any(
            self.choice.prefers_lists(
                asked,
                exact=exact_work(asked, entries, dim),
                lists=file.search_work(asked, entries, probes=probes),
            )
            for asked in ASKED
        )

    def _compare(self, head: int) -> Generator[int, None, None]:
        file = self._files[head]
        if file is None:
            return
        count, recall = yield from self._judge(head, file)
        self._searched[head] = 0
        if count:
            self._recall = recall if self._recall is None else self._recall + 0.3 * (recall - self._recall)
            self._found += count * recall
            self._sampled += count
        if not self._is_useful(file, length_of(self._live)):
            self._give_up(head, length_of(self._live))

    def _judge(self, head: int, file: InvertedFile) -> Generator[int, None, tuple[int, float]]:
        """Compares the queries that were kept with exact search; how many, and the recall."""
        kept = self._samples[head].take()
        file.begin_judging(length_of(self._live))
        recalls: list[float] = []
        for top_k in sorted({top_k for _, top_k in kept}):
            queries = np.stack([query for query, of in kept if of == top_k])
            scores, hits = yield from self._true_hits(head, queries, top_k)
            moves = self._moves
            for first in range(0, len(queries), SAMPLES_MIN):
                if moves != self._moves or not (hits >= 0).any():
                    break  # entries have moved: these hits are of other slots
                keys, dtype, live = self._keys[head], self._spec.dtype, list(self._live)
                part = slice(first, first + SAMPLES_MIN)
                asked, wanted = queries[part], those_in(live, hits[part])  # the oldest may be gone since
                if file.is_trusted:
                    found = yield from in_steps(file.search(asked, keys, dtype, live=live, top_k=top_k), STEP)
                    if moves != self._moves:
                        break
                    recalls += map(recall_of, found[0], np.where(wanted >= 0, scores[part], -np.inf))
                file.learn(asked, wanted, keys=keys, dtype=dtype, live=live)
                yield SAMPLES_MIN * file.centroids.size
        file.settle(self._spec.recall)
        return len(recalls), float(np.mean(recalls)) if recalls else 1.0

    def _true_hits(
        self, head: int, queries: Float32, top_k: int
    ) -> Generator[int, None, tuple[Float32, Int64]]:
        """What exact search finds for queries [N, D]: scores, slots [N, K]; none if entries keep moving."""
        count, dim = queries.shape
        best, rows_max = kernels.Best(count, top_k), rows_in(STEP, count * dim)
        for _ in range(JUDGED_ANEW):
            moves = self._moves
            # Within a turn the ring does not change. Between two it may; what has moved is looked for again.
            for part in list(self._live):
                for first in range(part.start, part.stop, rows_max):
                    rows = slice(first, min(part.stop, first + rows_max, self._keys.shape[1]))
                    kernels.scan(
                        best,
                        queries[None],
                        self._keys[head : head + 1],
                        query_dtype=_FLOAT32,
                        key_dtype=self._spec.dtype,
                        rows=rows,
                    )
                    yield work.searched(count, rows.stop - rows.start, dim)
            if moves == self._moves:
                break
            best = kernels.Best(count, top_k)
        return best.ordered()

    def _all_files(self) -> list[InvertedFile]:
        return [file for file in (*self._files, self._growing) if file is not None]

    def _reason(self) -> str:
        if self._trains:
            return reasons.BEING_MADE
        if self._spec.recall >= 1:
            return reasons.ALL_ASKED
        if any(patience.has_given_up for patience in self._patience) and not self._too_few:
            return reasons.NONE_FASTER
        return reasons.TOO_FEW


_FLOAT32 = kernels.FLOAT32
