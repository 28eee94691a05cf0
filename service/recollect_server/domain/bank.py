"""A bank: the entries of one layer of one stream. Ring says where, store holds what."""

from __future__ import annotations

import numpy as np

from recollect_server.domain.arrays import DenseArray, Float32, Int64
from recollect_server.domain.errors import StaleEntryError
from recollect_server.domain.eviction import Selector, condemned, is_prefix
from recollect_server.domain.ports import Attention, Hits, Store
from recollect_server.domain.ring import Ring
from recollect_server.domain.spec import NamespaceSpec


class Bank:
    """One independent memory.

    Args:
        spec: Of its namespace.
        store: Empty, on the device that serves the namespace.
        first_sequence: Id of its first entry.
    """

    def __init__(self, spec: NamespaceSpec, store: Store, *, first_sequence: int) -> None:
        self.spec = spec
        self.ring = Ring(spec.capacity, first_sequence=first_sequence)
        self._store = store

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the buffers for keys and values."""
        return self.ring.allocated * self.spec.entry_bytes

    def bytes_for(self, tokens: int) -> int:
        """What `allocated_bytes` will be once `tokens` more entries are added."""
        return self.ring.allocation_for(tokens) * self.spec.entry_bytes

    def add(self, keys: DenseArray, values: DenseArray, *, now_s: float) -> int:
        """Appends keys [Hkv, T, Dk] and values [Hkv, T, Dv]; returns how many entries made room."""
        tokens = keys.shape[1]
        allocated = self.ring.allocation_for(tokens)
        if allocated > self.ring.allocated:
            self._store.grow(allocated, self.ring.segments())
            self.ring.grow(allocated)
        writes, evicted = self.ring.push(tokens, second=int(now_s))
        self._store.write(writes, keys, values)
        return evicted

    def search(self, queries: DenseArray, top_k: int) -> Hits:
        """The top_k entries of queries [Hq, T, Dk]."""
        return self._store.search(queries, self.ring.segments(), top_k)

    def attend(self, queries: DenseArray, top_k: int, *, scale: float) -> Attention:
        """Attention of queries [Hq, T, Dk] over their top_k entries."""
        return self._store.attend(queries, self.ring.segments(), top_k, scale=scale)

    def attend_backward(
        self,
        queries: DenseArray,
        ids: Int64,
        *,
        scale: float,
        grad_output: DenseArray,
        grad_lse: Float32 | None,
    ) -> Float32:
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

    def keys(self, slots: Int64) -> DenseArray:
        """Keys [Hq, T, K, Dk]."""
        return self._store.keys(slots)

    def values(self, slots: Int64) -> DenseArray:
        """Values [Hq, T, K, Dv]."""
        return self._store.values(slots)

    def evict(self, selector: Selector, *, now_s: float) -> int:
        """Removes what the selector names; returns how many entries that were."""
        mask = condemned(self.ring, selector, now_s=now_s)
        evicted = int(mask.sum())
        if is_prefix(mask):
            self.ring.drop_oldest(evicted)
        else:
            self._store.compact(self.ring.keep(np.flatnonzero(~mask)))
        return evicted

    def clear(self) -> None:
        """Zeroes and releases the buffers; the bank must not be used after."""
        self._store.clear()
