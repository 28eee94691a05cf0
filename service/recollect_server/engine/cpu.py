"""The CPU as a device: buffers in NumPy, search by FAISS in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from recollect_server.domain.arrays import RAW_TYPES, DenseArray, Float32, Int64, Raw, to_float32
from recollect_server.domain.ports import Attention, Hits
from recollect_server.domain.ring import Write
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.engine import attention_cpu, faiss_cpu

WIDENED_ROWS_MAX = 32_768
"""Half-precision keys are widened in blocks of so many rows, which bounds the scratch memory."""

GATHERED_BYTES_MAX = 32 * 1024 * 1024
"""Retrieved pairs are gathered in blocks of so many bytes, for the same reason."""


class CpuDevice:
    """Implements the `Device` port.

    Args:
        threads: For one search; 0 leaves it to FAISS.
    """

    name = "cpu"

    def __init__(self, *, threads: int = 0) -> None:
        if threads:
            faiss_cpu.use_threads(threads)

    def store(self, spec: NamespaceSpec) -> CpuStore:
        """An empty store."""
        return CpuStore(spec)


class CpuStore:
    """Implements the `Store` port: keys [Hkv, slots, Dk] and values [Hkv, slots, Dv], apart."""

    def __init__(self, spec: NamespaceSpec) -> None:
        self._dtype = spec.dtype
        self._keys = _zeros(spec, 0, spec.key_dim)
        self._values = _zeros(spec, 0, spec.value_dim)
        self._spec = spec

    def grow(self, allocated: int, live: Sequence[slice]) -> None:
        """See `Store.grow`."""
        self._keys = _moved(self._keys, _zeros(self._spec, allocated, self._spec.key_dim), live)
        self._values = _moved(self._values, _zeros(self._spec, allocated, self._spec.value_dim), live)

    def write(self, writes: Sequence[Write], keys: DenseArray, values: DenseArray) -> None:
        """See `Store.write`."""
        for write in writes:
            self._keys[:, write.slots] = keys.raw[:, write.tokens]
            self._values[:, write.slots] = values.raw[:, write.tokens]

    def compact(self, slots: Int64) -> None:
        """See `Store.compact`."""
        self._keys[:, : slots.size] = self._keys[:, slots]
        self._values[:, : slots.size] = self._values[:, slots]

    def clear(self) -> None:
        """See `Store.clear`."""
        self._keys.fill(0)
        self._values.fill(0)
        self._keys = _zeros(self._spec, 0, self._spec.key_dim)
        self._values = _zeros(self._spec, 0, self._spec.value_dim)

    def search(self, queries: DenseArray, live: Sequence[slice], top_k: int) -> Hits:
        """See `Store.search`."""
        q = queries.float32()  # [Hq, T, Dk]
        query_heads, tokens, key_dim = q.shape
        grouped = q.reshape(self._spec.heads, -1, key_dim)  # [Hkv, Hq/Hkv * T, Dk]
        scores = np.empty((*grouped.shape[:2], top_k), dtype=np.float32)
        slots = np.empty((*grouped.shape[:2], top_k), dtype=np.int64)
        for head in range(self._spec.heads):
            blocks = self._key_blocks(head, live)
            scores[head], slots[head] = faiss_cpu.top_k_of(grouped[head], blocks, top_k)
        shape = (query_heads, tokens, top_k)
        return Hits(scores=scores.reshape(shape), slots=slots.reshape(shape))

    def attend(self, queries: DenseArray, live: Sequence[slice], top_k: int, *, scale: float) -> Attention:
        """See `Store.attend`."""
        hits = self.search(queries, live, top_k)
        query_heads, tokens, _ = hits.slots.shape
        output = np.zeros((query_heads, tokens, self._spec.value_dim), dtype=np.float32)
        lse = np.full((query_heads, tokens), -np.inf, dtype=np.float32)
        if live:
            group = query_heads // self._spec.heads
            for head, part in self._parts(query_heads, tokens, top_k):
                v = self._gather(self._values[head // group], hits.slots[head, part])  # [t, K, Dv]
                scaled = np.float32(scale) * hits.scores[head, part]
                output[head, part], lse[head, part] = attention_cpu.attend(scaled, v)
        return Attention(output=output, lse=lse, slots=hits.slots)

    def attend_backward(
        self,
        queries: DenseArray,
        slots: Int64,
        *,
        scale: float,
        grad_output: DenseArray,
        grad_lse: Float32 | None,
    ) -> Float32:
        """See `Store.attend_backward`."""
        q, go = queries.float32(), grad_output.float32()
        gradient = np.zeros(q.shape, dtype=np.float32)
        if not (slots >= 0).any():
            return gradient
        group = slots.shape[0] // self._spec.heads
        for head, part in self._parts(*slots.shape):
            chosen = slots[head, part]
            gradient[head, part] = attention_cpu.attend_backward(
                q[head, part],
                self._gather(self._keys[head // group], chosen),
                self._gather(self._values[head // group], chosen),
                present=chosen >= 0,
                scale=scale,
                grad_output=go[head, part],
                grad_lse=None if grad_lse is None else grad_lse[head, part],
            )
        return gradient

    def keys(self, slots: Int64) -> DenseArray:
        """See `Store.keys`."""
        return self._pairs(self._keys, slots)

    def values(self, slots: Int64) -> DenseArray:
        """See `Store.values`."""
        return self._pairs(self._values, slots)

    def _key_blocks(self, head: int, live: Sequence[slice]) -> Iterator[tuple[int, Float32]]:
        """The live keys of a head as float32 with their first slot: in place, or widened in blocks."""
        for segment in live:
            step = segment.stop - segment.start
            if self._dtype is not Dtype.FLOAT32:
                step = min(step, WIDENED_ROWS_MAX)
            for first in range(segment.start, segment.stop, step):
                rows = self._keys[head, first : min(first + step, segment.stop)]
                yield first, to_float32(rows, self._dtype)

    def _parts(self, query_heads: int, tokens: int, top_k: int) -> Iterator[tuple[int, slice]]:
        widest = max(self._spec.key_dim, self._spec.value_dim)
        step = max(1, GATHERED_BYTES_MAX // (4 * top_k * widest))
        for head in range(query_heads):
            for first in range(0, tokens, step):
                yield head, slice(first, min(first + step, tokens))

    def _gather(self, rows: Raw, slots: Int64) -> Float32:
        """Rows [t, K, D] of one head's buffer [slots, D]; of any finite content for slot -1."""
        return to_float32(rows[slots.clip(min=0)], self._dtype)

    def _pairs(self, buffer: Raw, slots: Int64) -> DenseArray:
        query_heads = slots.shape[0]
        group = query_heads // self._spec.heads
        pairs = np.zeros((*slots.shape, buffer.shape[2]), dtype=buffer.dtype)
        for head in range(query_heads):
            present = slots[head] >= 0
            pairs[head][present] = buffer[head // group][slots[head][present]]
        return DenseArray(pairs, self._dtype)


def _zeros(spec: NamespaceSpec, slots: int, dim: int) -> Raw:
    return np.zeros((spec.heads, slots, dim), dtype=RAW_TYPES[spec.dtype])


def _moved(old: Raw, new: Raw, live: Sequence[slice]) -> Raw:
    first = 0
    for segment in live:
        size = segment.stop - segment.start
        new[:, first : first + size] = old[:, segment]
        first += size
    old.fill(0)
    return new
