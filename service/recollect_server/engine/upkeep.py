"""When a bank's inverted files are made, kept and judged: in the background, a little at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from typing import Literal

import numpy as np

from recollect_server.domain.arrays import Int64, Raw
from recollect_server.domain.ports import IndexState
from recollect_server.domain.spec import Dtype, IndexChoice, NamespaceSpec
from recollect_server.domain.steps import Steps
from recollect_server.engine import reasons
from recollect_server.engine.choice import Choice
from recollect_server.engine.costs import exact_work, rows_in
from recollect_server.engine.ivf import InvertedFile
from recollect_server.engine.judging import NO_KEYS, Present, judge
from recollect_server.engine.kmeans import centroids_of, fill, lists_for
from recollect_server.engine.patience import Patience
from recollect_server.engine.ranges import length_of
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

Job = Generator[int, None, None]
"""Background work in steps: each says what it took."""

Kind = Literal["duty", "training"]
"""Of a job: for lists that are in use, or new ones."""

Task = Callable[[int], Job]
"""Of a head."""


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
        # New lists take long to make. What those in use need meanwhile is done in turn with that.
        self._jobs: dict[Kind, Job] = {}
        self._turn: Kind = "training"
        self._samples = [Samples() for _ in range(spec.heads)]
        # Work of searches since the last comparison. Of each head: else some would have it all.
        self._searched = [0] * spec.heads
        self._patience = [Patience() for _ in range(spec.heads)]
        self._sampled, self._found = 0, 0.0
        self._recall = None if spec.recall < 1 else 1.0
        self._too_few = False
        self._present = Present()
        self._bytes = self._sample_bytes = 0

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
        if self._is_training:
            return reasons.BEING_MADE
        if max(len(file.pending) for file in files) > BEHIND:
            return reasons.BEING_FILLED
        if any(file.strangers.are_some(file.trained_on) for file in files):
            return reasons.STRANGERS
        return reasons.BEING_JUDGED if any(file.is_doubted for file in files) else ""

    def clear(self) -> None:
        """Zeroes what was made of keys and queries; the index must not be used after."""
        for job in self._jobs.values():
            job.close()
        for file in self._all_files():
            file.clear()
        for samples in self._samples:
            samples.clear()

    @property
    def _is_training(self) -> bool:
        return "training" in self._jobs

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

    def moving(self, order: Int64 | None, slots: int, *, head: int) -> Steps[None]:
        """Follows entries of slots `order` (None: of all) to those from `head` on, in a buffer of `slots`."""
        self._present.moves += order is not None
        for file in self._all_files():
            yield from file.moving(order, slots, head=head)
        self._count()

    # ---- background ----

    def upkeep_work(self, live: Sequence[slice]) -> int:
        """See `Store.upkeep_work`: at most a slice."""
        entries = length_of(live)
        if self._spec.recall >= 1 or entries < ENTRIES_MIN[self._spec.index]:
            return 0
        if self._jobs:
            return SLICE
        work_of_each = (self._work_of_next(head, entries) for head in range(self._spec.heads))
        # Of the first that has some: what is added is added to all.
        return min(SLICE, self._spec.heads * next(filter(None, work_of_each), 0))

    def _work_of_next(self, head: int, entries: int) -> int:
        file, duty = self._files[head], self._duty_of(head, entries)
        if file is not None and duty == self._assign:
            return len(file.pending) * file.centroids.size
        return 0 if duty is None and self._training_of(head, entries) is None else SLICE

    def upkeep(self, keys: Raw, live: Sequence[slice], *, seconds: float = math.inf) -> Steps[bool]:
        """A slice of what there is to do on keys [heads, slots, D], or less of it; whether there is more."""
        yield 0
        for file in self._all_files():
            file.strangers.keep(live)
        done, spent_s, left = 0, 0.0, self.upkeep_work(live)
        self._present.keys, self._present.live = keys, live
        try:
            while left and done < SLICE and spent_s < seconds:
                begun_s = time.perf_counter()
                took = self._work()
                done, spent_s = done + took, spent_s + time.perf_counter() - begun_s
                yield took
                left = self.upkeep_work(live)
        except Exception:  # a defect: what was begun is not gone on with
            self._growing, self._jobs = None, {}
            raise
        finally:
            self._count()
            self._present.keys = NO_KEYS  # a slice would keep a buffer that the bank has outgrown
        return left > 0

    def _work(self) -> int:
        """A step of a job, of the two kinds in turn; what it took."""
        last, self._turn = self._turn, "duty" if self._turn == "training" else "training"
        return self._go_on(self._turn) or self._go_on(last)

    def _go_on(self, kind: Kind) -> int:
        if kind not in self._jobs:
            job = self._next(self._duty_of if kind == "duty" else self._training_of)
            if job is None:
                return 0
            self._jobs[kind] = job
        took = next(self._jobs[kind], None)
        if took is None:
            del self._jobs[kind]
        return took or 0

    def _next(self, task_of: Callable[[int, int], Task | None]) -> Job | None:
        entries = length_of(self._present.live)
        tasks = ((head, task_of(head, entries)) for head in range(self._spec.heads))
        return next((task(head) for head, task in tasks if task is not None), None)

    def _duty_of(self, head: int, entries: int) -> Task | None:
        """What lists that are in use need."""
        file, samples = self._files[head], self._samples[head]
        if file is None:
            return None
        if len(file.pending) >= PENDING_MIN:
            return self._assign
        if len(samples) < SAMPLES_MIN or not samples.fresh:
            return None
        if file.is_out_of_date(entries):
            return self._compare
        if self._is_training or file.is_worn(entries):
            return None  # there will be others
        cost = len(samples) * entries * self._spec.key_dim
        cost += file.search_work(len(samples), entries) - file.search_work(0, entries)  # not one by itself
        is_new = file.judged < JUDGED_SURE and len(samples) == SAMPLES
        return self._compare if is_new or cost <= COMPARED * self._searched[head] else None

    def _training_of(self, head: int, entries: int) -> Task | None:
        """Whether new lists are to be made, if what is due of those in use is done."""
        file = self._files[head]
        if len(self._samples[head]) < SAMPLES_MIN // 2:
            return None  # they could not be judged
        if file is None:
            return self._train if self._patience[head].is_over(entries) else None
        is_due = len(file.pending) >= PENDING_MIN or file.is_out_of_date(entries)
        return self._train if file.is_worn(entries) and not is_due else None

    def _assign(self, head: int) -> Job:
        while (file := self._files[head]) is not None and file.pending:
            file.doubt(self._spec.recall, entries=length_of(self._present.live))
            yield file.assign(self._present.keys[head], self._spec.dtype, step=STEP)

    def _train(self, head: int) -> Job:
        entries, dim = length_of(self._present.live), self._spec.key_dim
        lists = lists_for(entries)
        self._note_change(head, entries)
        size = min(entries, TRAINED_PER_LIST * lists, SAMPLE_BYTES_MAX // (4 * dim))
        sample = np.zeros((size, dim), dtype=np.float32)
        self._sample_bytes = sample.nbytes
        try:
            yield from fill(sample, lambda: (self._present.keys[head], self._present.live), self._spec.dtype)
            centroids, radii = yield from centroids_of(sample, lists, rows=rows_in(STEP, lists * dim))
        finally:
            sample.fill(0)
            self._sample_bytes = 0
        del sample
        file = InvertedFile(centroids, radii, self._present.keys.shape[1], entries=entries)
        for part in self._present.live:
            file.pending.add(part)
        self._growing = file
        while len(file.pending) > PENDING_MIN:
            yield file.assign(self._present.keys[head], self._spec.dtype, step=STEP)
        if file.pending:
            yield file.assign(self._present.keys[head], self._spec.dtype, step=STEP)
        yield from self._judge(head, file)
        self._growing = None
        if "duty" in self._jobs:  # of lists that will be gone
            self._jobs.pop("duty").close()
        if self._is_useful(file, length_of(self._present.live)):
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
        if file is None:
            return
        # Lists may be given up as soon as a text changes, by queries of the new one, before many keys are.
        if file.strangers.are_latest or file.strangers.are_some(entries):
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

    def _compare(self, head: int) -> Job:
        file = self._files[head]
        if file is None:
            return
        count, recall = yield from self._judge(head, file)
        self._searched[head] = 0
        if count:
            self._recall = recall if self._recall is None else self._recall + 0.3 * (recall - self._recall)
            self._found += count * recall
            self._sampled += count
        if not self._is_useful(file, length_of(self._present.live)):
            self._give_up(head, length_of(self._present.live))

    def _judge(self, head: int, file: InvertedFile) -> Generator[int, None, tuple[int, float]]:
        """Compares the queries that were kept with exact search; how many, and the recall."""
        keeps = self._is_training and file is not self._growing
        kept = self._samples[head].take(keeps=keeps)
        file.begin_judging(length_of(self._present.live))
        recalls = yield from judge(file, kept, head=head, present=self._present, spec=self._spec, step=STEP)
        file.settle(self._spec.recall)
        return len(recalls), float(np.mean(recalls)) if recalls else 1.0

    def _all_files(self) -> list[InvertedFile]:
        return [file for file in (*self._files, self._growing) if file is not None]

    def _reason(self) -> str:
        if self._is_training:
            return reasons.BEING_MADE
        if self._spec.recall >= 1:
            return reasons.ALL_ASKED
        if any(patience.has_given_up for patience in self._patience) and not self._too_few:
            return reasons.NONE_FASTER
        return reasons.TOO_FEW
