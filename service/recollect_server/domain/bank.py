"""A bank: the entries of one layer of one stream. Ring says where, store holds what."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from recollect_server.domain import work
from recollect_server.domain.arrays import DenseArray, Float32, Int64, Raw
from recollect_server.domain.errors import StaleEntryError
from recollect_server.domain.eviction import ByIds, Oldest, Selector, condemned, is_prefix
from recollect_server.domain.ports import Attention, Hits, IndexState, Store
from recollect_server.domain.ring import Ring
from recollect_server.domain.spec import NamespaceSpec
from recollect_server.domain.steps import Steps, run_through
from recollect_server.domain.usage import Usage

LOOKED_BYTES = 64
"""Of an entry that is looked for by its id: its id, its slot, and where they come to lie."""

BANK_BYTES = 4096
"""Counted for each bank, however empty: the objects that it is made of take it (measured: 1.8 to 3.6 KB).
There may be one for each layer of each stream, so for nothing they would be no small matter."""


class Bank:
    """One independent memory. It counts from when it is somebody's: see `hold`.

    Args:
        spec: Of its namespace.
        store: Empty, on the device that serves the namespace.
        first_sequence: Id of its first entry.
        usage: Of its namespace; told of every change.
    """

    __slots__ = ("_held_bytes", "_index_bytes", "_store", "_told", "_usage", "ring", "spec")

    def __init__(self, spec: NamespaceSpec, store: Store, *, first_sequence: int, usage: Usage) -> None:
        self.spec = spec
        self.ring = Ring(spec.capacity, first_sequence=first_sequence)
        self._store = store
        self._usage = usage
        self._told = (0, 0.0)
        self._index_bytes = 0  # as it was counted last
        self._held_bytes = 0

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the buffers for keys and values, of an index over them, and of the bank itself."""
        return self.ring.allocated * self.spec.entry_bytes + self._index_bytes + self._held_bytes

    def bytes_for(self, tokens: int) -> int:
        """What `allocated_bytes` will be once `tokens` more entries are added."""
        return self.ring.allocation_for(tokens) * self.spec.entry_bytes + self._index_bytes + BANK_BYTES

    def entries_for(self, tokens: int) -> int:
        """How many entries there will be once `tokens` more are added."""
        return min(self.spec.capacity, self.ring.count + tokens)

    @property
    def is_held(self) -> bool:
        """Whether it is a stream's."""
        return bool(self._held_bytes)

    def hold(self) -> None:
        """It is a stream's from now on, until it is cleared."""
        if not self._held_bytes:
            self._held_bytes = BANK_BYTES
            self._usage.change(allocated_bytes=BANK_BYTES)

    def growing(self, tokens: int) -> Steps[None]:
        """Moves to larger buffers, if `tokens` more entries need them: copies to them a little at a time."""
        allocated = self.ring.allocation_for(tokens)
        more_bytes = (allocated - self.ring.allocated) * self.spec.entry_bytes
        if not more_bytes:
            yield 0
            return
        ids = self.ring.ids_in_front(allocated)
        self._usage.change(allocated_bytes=more_bytes)  # others that grow meanwhile cannot have them, too
        try:
            yield from self._store.growing(allocated, self.ring.segments())
        except BaseException:
            self._usage.change(allocated_bytes=-more_bytes)
            raise
        self.ring.grow(allocated, ids=ids)

    def touch(self, tokens: int) -> Steps[None]:
        """Has the memory found where `tokens` more entries will lie: see `Store.touch`."""
        return self._store.touch(min(self.ring.allocated, self.ring.head + self.ring.count + tokens))

    def add(self, keys: DenseArray, values: DenseArray, *, now_s: float) -> int:
        """Appends keys [Hkv, T, Dk] and values [Hkv, T, Dv]; returns how many entries made room.

        Where they need larger buffers and nobody had the bank grow before, it does so now, at once.
        """
        tokens, before = keys.shape[1], self.ring.count
        run_through(self.growing(tokens))
        # The store first: where it finds no memory it has written nothing, and the ring has not moved.
        self._store.write(self.ring.writes_for(tokens), keys, values)
        evicted = self.ring.push(tokens, second=int(now_s))
        self._usage.change(entries=self.ring.count - before)
        self._count_index()
        return evicted

    @property
    def index_state(self) -> IndexState:
        """What answers reads now. Safe to ask from any thread."""
        return self._store.index_state

    def untold_recall(self) -> tuple[int, float]:
        """Queries that were compared with exact search since it was last asked, and their recall.

        Safe to ask from one thread beside the device's: stores count `found` before `sampled`.
        """
        state, (sampled, found) = self._store.index_state, self._told
        queries = state.sampled - sampled
        if not queries:
            return 0, 0.0
        self._told = state.sampled, state.found
        return queries, (state.found - found) / queries

    @property
    def upkeep_work(self) -> int:
        """Background work that there is, up to a few milliseconds, in multiply-adds; from any thread."""
        return self._store.upkeep_work(self.ring.segments())

    def upkeep(self, *, seconds: float = math.inf) -> Steps[bool]:
        """A few milliseconds of background work, or about so many seconds; whether there is more."""
        more = yield from self._store.upkeep(self.ring.segments(), seconds=seconds)
        self._count_index()
        return more

    def search_work(self, queries: int) -> int:
        """What `queries` of each head would take, in multiply-adds; an estimate, from any thread."""
        return self._store.search_work(queries, self.ring.count)

    def search(self, queries: DenseArray, top_k: int, *, exact: bool = False) -> Steps[Hits]:
        """The top_k entries of queries [Hq, T, Dk]; `exact`: whatever index the namespace has."""
        self._count_index()  # reads before may have made one
        return self._store.search(queries, self.ring.segments(), top_k, exact=exact)

    def attend(
        self, queries: DenseArray, top_k: int, *, scale: float, exact: bool = False
    ) -> Steps[Attention]:
        """Attention of queries [Hq, T, Dk] over their top_k entries; `exact` as in `search`."""
        self._count_index()
        return self._store.attend(queries, self.ring.segments(), top_k, scale=scale, exact=exact)

    def attend_backward(
        self,
        queries: DenseArray,
        ids: Int64,
        *,
        scale: float,
        grad_output: DenseArray,
        grad_lse: Float32 | None,
    ) -> Steps[Float32]:
        """The query gradient [Hq, T, Dk] of `attend` over `ids` [Hq, T, K], -1 where there was none.

        Raises:
            StaleEntryError: One of the ids is no longer stored.
        """
        slots = self.ring.slots_of_ids(ids)
        stale = (slots < 0) & (ids >= 0)
        if stale.any():
            raise StaleEntryError(
                f"ids: entry {int(ids[stale].min())} is not stored: it has been evicted since forward; "
                f"the oldest left is {self.ring.first_id}. Raise the capacity, or let the client take a zero "
                "gradient",
                argument="ids",
            )
        return self._store.attend_backward(
            queries, slots, scale=scale, grad_output=grad_output, grad_lse=grad_lse
        )

    def ids(self, slots: Int64) -> Int64:
        """Ids of slots (any shape); -1 stays -1."""
        return self.ring.ids_of_slots(slots)

    def keys(self, slots: Int64, *, into: Raw | None = None, head: int | None = None) -> DenseArray:
        """Keys [Hq, T, K, Dk], written to `into` if it is given; see `Store.keys`."""
        return self._store.keys(slots, into=into, head=head)

    def values(self, slots: Int64, *, into: Raw | None = None, head: int | None = None) -> DenseArray:
        """Values [Hq, T, K, Dv], written to `into` if it is given; see `Store.values`."""
        return self._store.values(slots, into=into, head=head)

    def evict(self, selector: Selector, *, now_s: float) -> int:
        """Removes what the selector names, at once; returns how many entries that were."""
        return run_through(self.evicting(selector, now_s=now_s))

    def evicting(self, selector: Selector, *, now_s: float) -> Steps[int]:
        """The same a little at a time, to its end once it has begun: what stays moves together."""
        yield work.BANK
        if isinstance(selector, Oldest):  # the usual one, which needs no look at each entry
            evicted = min(selector.entries, self.ring.count)
            self.ring.drop_oldest(evicted)
        else:
            mask = condemned(self.ring, selector, now_s=now_s)
            if isinstance(selector, ByIds):
                yield work.moved(LOOKED_BYTES * self.ring.count)
            evicted = int(mask.sum())
            if is_prefix(mask):
                self.ring.drop_oldest(evicted)
            else:
                yield from self._compacting(np.flatnonzero(~mask))
        self._usage.change(entries=-evicted)
        self._count_index()
        return evicted

    def _compacting(self, order: Int64) -> Steps[None]:
        ids = self.ring.ids_kept(order)
        yield from self._store.compacting(self.ring.slots_of_order(order), self.ring.head)
        self.ring.keep(order.size, ids=ids)

    def clear(self) -> None:
        """Zeroes and releases the buffers; the bank must not be used after."""
        self._store.clear()
        self._usage.change(allocated_bytes=-self.allocated_bytes, entries=-self.ring.count)

    def _count_index(self) -> None:
        now = self._store.index_bytes
        if now != self._index_bytes:
            self._usage.change(allocated_bytes=now - self._index_bytes)
            self._index_bytes = now


def grow_together(banks: Sequence[tuple[Bank, int]]) -> None:
    """Each bank gets the buffers that so many more entries need, at once: so what is added then has room.

    Where one gets none, those that are no stream's yet give theirs back: nobody else would.
    """
    try:
        for bank, tokens in banks:
            run_through(bank.growing(tokens))
    except BaseException:
        for bank, _ in banks:
            if not bank.is_held:
                bank.clear()
        raise


def attend_rows(
    banks: Sequence[Bank | None],
    queries: DenseArray,
    top_k: int,
    *,
    value_dim: int,
    scale: float,
    exact: bool = False,
) -> Steps[Attention]:
    """As `Bank.attend` of banks of a namespace, each with a row of queries [B, Hq, T, Dk]; None is empty."""
    held = [(bank._store, bank.ring.segments()) for bank in banks if bank is not None]
    if held and len(held) == len(banks):
        return (yield from held[0][0].attend_rows(held, queries, top_k, scale=scale, exact=exact))
    shape = queries.shape[:3]
    whole = Attention(
        output=np.zeros((*shape, value_dim), dtype=np.float32),
        lse=np.full(shape, -np.inf, dtype=np.float32),
        slots=np.full((*shape, top_k), -1, dtype=np.int64),
    )
    if held:
        rows = [row for row, bank in enumerate(banks) if bank is not None]
        asked = DenseArray(queries.raw[rows], queries.dtype)
        part = yield from held[0][0].attend_rows(held, asked, top_k, scale=scale, exact=exact)
        whole.output[rows], whole.lse[rows], whole.slots[rows] = part.output, part.lse, part.slots
    return whole
