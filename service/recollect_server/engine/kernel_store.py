"""A CPU store whose reads run in the compiled kernels."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from recollect_server.domain import work
from recollect_server.domain.arrays import DenseArray, Float32, Int64, Raw, RowBytes, to_float32
from recollect_server.domain.ports import Attention, Hits, IndexState, Store
from recollect_server.domain.ring import Write
from recollect_server.domain.spec import Dtype, IndexChoice, NamespaceSpec, ValueDtype
from recollect_server.domain.steps import Steps, run_through
from recollect_server.engine import kernels
from recollect_server.engine.choice import timed
from recollect_server.engine.costs import exact_work
from recollect_server.engine.cpu_buffers import CpuBuffers
from recollect_server.engine.kernel_rows import Place, Row, attend_together
from recollect_server.engine.ranges import length_of
from recollect_server.engine.row_by_row import joined
from recollect_server.engine.scan import scan_in_turns
from recollect_server.engine.tiles import in_parts
from recollect_server.engine.upkeep import Index

log = logging.getLogger(__name__)

QUERIES_MAX = 1024
"""Queries of a head that are searched together; more would make the smallest step long."""

HEADS_TOGETHER_MAX = 512
"""Queries of all heads that are searched in one step, if they are no more."""

TOGETHER_MAX = 64
"""Queries of all heads, up to which several banks are read together; more give threads enough to do."""


class KernelStore(CpuBuffers):
    """Implements the `Store` port.

    Args:
        spec: Of the namespace.
    """

    __slots__ = ("_index", "_place")

    def __init__(self, spec: NamespaceSpec) -> None:
        super().__init__(spec)
        self._index = None if spec.index is IndexChoice.EXACT else Index(spec)

    @property
    def index_state(self) -> IndexState:
        """See `Store.index_state`."""
        return IndexState() if self._index is None else self._index.state

    @property
    def index_bytes(self) -> int:
        """See `Store.index_bytes`."""
        return 0 if self._index is None else self._index.bytes

    def growing(self, allocated: int, live: Sequence[slice]) -> Steps[None]:
        """See `Store.growing`."""
        yield from super().growing(allocated, live)
        if self._index is None or not self._index.has_files:
            return
        # Where nothing is live too: the lists have to know of the slots that there are now.
        slots = [np.arange(0), *(np.arange(part.start, part.stop) for part in live)]
        stay = [part.start for part in live] == [0]  # as a rule: nothing has left yet
        # In the last step: the ring goes over to these buffers next.
        run_through(self._moving(None if stay else np.concatenate(slots), allocated, head=0))

    def write(self, writes: Sequence[Write], keys: DenseArray, values: DenseArray) -> None:
        """See `Store.write`."""
        super().write(writes, keys, values)
        if self._index is not None:
            for write in writes:
                self._index.wrote(write.slots)

    def compacting(self, slots: Int64, head: int) -> Steps[None]:
        """See `Store.compacting`."""
        yield from super().compacting(slots, head)
        yield from self._moving(slots, self._keys.shape[1], head=head)

    def clear(self) -> None:
        """See `Store.clear`."""
        super().clear()
        self._forget_index()

    def upkeep_work(self, live: Sequence[slice]) -> int:
        """See `Store.upkeep_work`."""
        return 0 if self._index is None else self._index.upkeep_work(live)

    def upkeep(self, live: Sequence[slice], *, seconds: float = math.inf) -> Steps[bool]:
        """See `Store.upkeep`."""
        if self._index is None:
            yield 0
            return False
        return (yield from self._index.upkeep(self._keys, live, seconds=seconds))

    def search_work(self, queries: int, entries: int) -> int:
        """See `Store.search_work`."""
        exact = self._spec.heads * work.searched(queries, entries, self._spec.key_dim)
        if self._index is None:
            return exact
        file = self._index.file_for(0, queries, entries)
        return exact if file is None else self._spec.heads * file.search_work(queries, entries)

    def search(
        self, queries: DenseArray, live: Sequence[slice], top_k: int, *, exact: bool = False
    ) -> Steps[Hits]:
        """See `Store.search`."""
        grouped = self._grouped(queries)  # [Hkv, Hq/Hkv * T, Dk]
        scores = np.empty((*grouped.shape[:2], top_k), dtype=np.float32)
        slots = np.empty((*grouped.shape[:2], top_k), dtype=np.int64)
        for heads, part in _blocks(*grouped.shape[:2]):
            asked = grouped[heads, part]
            found = yield from self._found(asked, queries.dtype, heads, live=live, top_k=top_k, exact=exact)
            scores[heads, part], slots[heads, part] = found
        shape = (*queries.shape[:2], top_k)
        return Hits(scores=scores.reshape(shape), slots=slots.reshape(shape))

    def attend(
        self, queries: DenseArray, live: Sequence[slice], top_k: int, *, scale: float, exact: bool = False
    ) -> Steps[Attention]:
        """See `Store.attend`."""
        grouped = self._grouped(queries)
        heads_and_queries = grouped.shape[:2]
        output = np.empty((*heads_and_queries, self._spec.value_dim), dtype=np.float32)
        lse = np.empty(heads_and_queries, dtype=np.float32)
        slots = np.empty((*heads_and_queries, top_k), dtype=np.int64)
        for heads, part in _blocks(*heads_and_queries):
            asked = grouped[heads, part]
            found = yield from self._found(asked, queries.dtype, heads, live=live, top_k=top_k, exact=exact)
            slots[heads, part] = found[1]
            kernels.attend(
                *found,
                self._values[heads],
                dtype=self._spec.stored_values,
                scale=scale,
                output=output[heads, part],
                lse=lse[heads, part],
            )
            yield work.gathered(found[1].size, self._spec.value_dim)
        shape = queries.shape[:2]
        return Attention(
            output=output.reshape(*shape, -1), lse=lse.reshape(shape), slots=slots.reshape(*shape, top_k)
        )

    def attend_rows(
        self,
        rows: Sequence[tuple[Store, Sequence[slice]]],
        queries: DenseArray,
        top_k: int,
        *,
        scale: float,
        exact: bool = False,
    ) -> Steps[Attention]:
        """See `Store.attend_rows`. Small banks are read together, as many as a step may take."""
        left = yield 0
        parts: list[Attention] = []
        first = 0
        while first < len(rows):
            some, took = self._small_rows(rows[first:], math.prod(queries.shape[1:3]), left, exact=exact)
            if some:
                asked = DenseArray(queries.raw[first : first + len(some)], queries.dtype)
                parts.append(attend_together(some, asked, top_k, spec=self._spec, scale=scale))
                left = yield took
            else:
                store, live = rows[first]
                asked = queries.row(first)
                alone = yield from store.attend(asked, live, top_k, scale=scale, exact=exact)
                parts.append(Attention(alone.output[None], alone.lse[None], alone.slots[None]))
                left = yield 0
            first += max(1, len(some))
        return joined(parts)

    def _small_rows(
        self, rows: Sequence[tuple[Store, Sequence[slice]]], queries: int, left: int, *, exact: bool
    ) -> tuple[list[Row], int]:
        """Those that come first and are small, at most what `left` is enough for; and what they take."""
        some: list[Row] = []
        took = 0
        for store, live in rows:
            entries = length_of(live)
            if not isinstance(store, KernelStore) or queries > TOGETHER_MAX:
                break
            index = store._index
            if not (exact or index is None or index.is_too_small(entries)):
                break
            each = work.searched(queries // self._spec.heads, entries, self._spec.key_dim)
            took += self._spec.heads * each + work.BANK
            if some and took > left:
                return some, took - self._spec.heads * each - work.BANK
            some.append(Row(store._place, live))
        return some, took

    def attend_backward(
        self,
        queries: DenseArray,
        slots: Int64,
        *,
        scale: float,
        grad_output: DenseArray,
        grad_lse: Float32 | None,
    ) -> Steps[Float32]:
        """See `Store.attend_backward`."""
        q, go = queries.float32(), grad_output.float32()
        gradient = np.zeros(q.shape, dtype=np.float32)
        query_heads, tokens, top_k = slots.shape
        group = query_heads // self._spec.heads
        each = work.gathered(top_k, self._spec.key_dim + self._spec.value_dim)

        def derive(head: int, part: slice) -> None:
            bank_head = slice(head // group, head // group + 1)
            gradient[head, part] = kernels.attend_backward(
                q[None, head, part],
                np.ascontiguousarray(slots[None, head, part]),
                self._keys[bank_head],
                self._values[bank_head],
                spec=self._spec,
                scale=scale,
                grad_output=go[None, head, part],
                grad_lse=None if grad_lse is None else np.ascontiguousarray(grad_lse[None, head, part]),
            )[0]

        if (slots >= 0).any():
            yield from in_parts(query_heads, tokens, each=each, most=tokens, do=derive)
        return gradient

    def _moving(self, order: Int64 | None, slots: int, *, head: int) -> Steps[None]:
        """See `Index.moving`. Where there is no memory for it, lists would say what lay there before."""
        try:
            if self._index is not None:
                yield from self._index.moving(order, slots, head=head)
        except MemoryError:
            log.warning("no memory for the index of a bank that moved: exact search until there is a new one")
            self._forget_index()

    def _forget_index(self) -> None:
        if self._index is not None:
            self._index.clear()
            self._index = Index(self._spec)

    def _use(self, room: tuple[Raw, Raw | RowBytes], slots: int) -> None:
        super()._use(room, slots)
        self._place = Place.of(self._keys, self._values)

    def _grouped(self, queries: DenseArray) -> Raw:
        """Queries [Hkv, Hq/Hkv * T, Dk], as they came."""
        raw = np.ascontiguousarray(queries.raw)
        return raw.reshape(self._spec.heads, -1, self._spec.key_dim)

    def _found(
        self, asked: Raw, dtype: Dtype, heads: slice, *, live: Sequence[slice], top_k: int, exact: bool
    ) -> Steps[tuple[Float32, Int64]]:
        """Scores and slots [h, n, K] of queries asked [h, n, Dk] of some heads."""
        index, entries = self._index, length_of(live)
        if exact or index is None or index.is_too_small(entries):
            return (yield from self._scanned(asked, dtype, heads, live=live, top_k=top_k))
        count, dim = asked.shape[1:]
        files = [
            index.file_for(head, count, entries, is_asked=True) for head in range(heads.start, heads.stop)
        ]
        costs = [
            work.searched(count, entries, dim) if file is None else file.search_work(count, entries)
            for file in files
        ]
        for head, queries, cost in zip(range(heads.start, heads.stop), asked, costs, strict=True):
            index.searched(head, queries, top_k, dtype=dtype, cost=cost)
        exact_cost = exact_work(count, entries, dim)
        noted = partial(index.choice.measured, count)
        if not any(files):
            took = partial(noted, took_lists=False, work=len(files) * exact_cost)
            return (yield from timed(self._scanned(asked, dtype, heads, live=live, top_k=top_k), took))
        scores = np.empty((*asked.shape[:2], top_k), dtype=np.float32)
        slots = np.empty(scores.shape, dtype=np.int64)
        for row, file in enumerate(files):
            head = heads.start + row
            if file is None:
                one, alone = slice(head, head + 1), asked[row : row + 1]
                scan = self._scanned(alone, dtype, one, live=live, top_k=top_k)
                found = yield from timed(scan, partial(noted, took_lists=False, work=exact_cost))
            else:
                queries, keys = _widened(asked[row], dtype), self._keys[head]
                search = file.search(queries, keys, self._spec.dtype, live=live, top_k=top_k)
                found = yield from timed(search, partial(noted, took_lists=True, work=costs[row]))
            scores[row], slots[row] = found
        return scores, slots

    def _scanned(
        self, asked: Raw, dtype: Dtype, heads: slice, *, live: Sequence[slice], top_k: int
    ) -> Steps[tuple[Float32, Int64]]:
        """By exact search."""
        left = yield 0
        several, each, _ = asked.shape
        best = kernels.Best(several * each, top_k)
        keys, of = self._keys[heads], self._spec.dtype
        yield from scan_in_turns(best, asked, keys, dtype, of, parts=live, left=left)
        scores, slots = best.ordered()
        shape = (several, each, top_k)
        return scores.reshape(shape), slots.reshape(shape)

    def _gather_rows(
        self, rows: Raw | RowBytes, slots: Int64, into: DenseArray, dtype: Dtype | ValueDtype
    ) -> None:
        """See `CpuBuffers`; `into` is contiguous."""
        places = np.ascontiguousarray(slots)
        kernels.gather(rows, places, into.raw, dtype=dtype, to_dtype=into.dtype)

    def _packed(self, values: DenseArray) -> RowBytes:
        """See `CpuBuffers`."""
        return kernels.to_int8(values)


def _widened(queries: Raw, dtype: Dtype) -> Float32:
    """Queries [n, D], contiguous, in float32; a view where they are so already."""
    if dtype is Dtype.FLOAT32:
        return to_float32(queries, dtype)
    return to_float32(kernels.converted(queries, dtype=dtype, to_dtype=Dtype.FLOAT32), Dtype.FLOAT32)


def _blocks(heads: int, queries: int) -> Iterator[tuple[slice, slice]]:
    """Heads and queries that are searched together: all, or of one head at a time so many at most."""
    if heads * queries <= HEADS_TOGETHER_MAX:
        yield slice(0, heads), slice(0, queries)
        return
    for head in range(heads):
        for first in range(0, queries, QUERIES_MAX):
            yield slice(head, head + 1), slice(first, min(queries, first + QUERIES_MAX))
