"""A CPU store that searches with FAISS and attends with NumPy: where the kernels were not compiled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from recollect_server.domain import work
from recollect_server.domain.arrays import DenseArray, Float32, Int64, Raw, RowBytes, to_float32
from recollect_server.domain.ports import Attention, Hits, IndexState
from recollect_server.domain.spec import Dtype, IndexChoice, NamespaceSpec, ValueDtype
from recollect_server.domain.steps import Steps
from recollect_server.engine import attention_cpu, faiss_cpu
from recollect_server.engine.cpu_buffers import CpuBuffers, widened
from recollect_server.engine.no_upkeep import NoUpkeep
from recollect_server.engine.row_by_row import RowByRow
from recollect_server.engine.tiles import in_parts

NARROW_ROWS_MAX = 2**31
"""Float32 keys are searched where they lie."""

WIDENED_ROWS_MAX = 32_768
"""Half-precision keys are widened in blocks of so many rows, which bounds the scratch memory."""

GATHERED_BYTES_MAX = 1024 * 1024
"""Retrieved pairs are gathered in blocks of so many bytes: in the cache, work on them is twice as fast."""


class FaissStore(NoUpkeep, RowByRow, CpuBuffers):
    """Implements the `Store` port, always by exact search.

    Args:
        spec: Of the namespace.
        searcher: Of the thread that takes the steps.
    """

    __slots__ = ("_searcher",)

    def __init__(self, spec: NamespaceSpec, searcher: faiss_cpu.Searcher) -> None:
        super().__init__(spec)
        self._searcher = searcher

    @property
    def index_state(self) -> IndexState:
        """See `Store.index_state`."""
        asked = self._spec.index is not IndexChoice.EXACT
        return IndexState(reason="the kernels were not compiled" if asked else "")

    @property
    def index_bytes(self) -> int:
        """See `Store.index_bytes`."""
        return 0

    def search_work(self, queries: int, entries: int) -> int:
        """See `Store.search_work`."""
        return self._spec.heads * work.searched(queries, entries, self._spec.key_dim)

    def search(
        self, queries: DenseArray, live: Sequence[slice], top_k: int, *, exact: bool = False
    ) -> Steps[Hits]:
        """See `Store.search`."""
        q = queries.float32()  # [Hq, T, Dk]
        query_heads, tokens, key_dim = q.shape
        grouped = q.reshape(self._spec.heads, -1, key_dim)  # [Hkv, Hq/Hkv * T, Dk]
        scores = np.empty((*grouped.shape[:2], top_k), dtype=np.float32)
        slots = np.empty((*grouped.shape[:2], top_k), dtype=np.int64)
        rows_max = NARROW_ROWS_MAX if self._spec.dtype is Dtype.FLOAT32 else WIDENED_ROWS_MAX
        for head in range(self._spec.heads):
            keys_of = partial(self._keys_of, head)
            scores[head], slots[head] = yield from self._searcher.top_k_of(
                grouped[head], live, keys_of, top_k, rows_max=rows_max
            )
        shape = (query_heads, tokens, top_k)
        return Hits(scores=scores.reshape(shape), slots=slots.reshape(shape))

    def attend(
        self, queries: DenseArray, live: Sequence[slice], top_k: int, *, scale: float, exact: bool = False
    ) -> Steps[Attention]:
        """See `Store.attend`."""
        hits = yield from self.search(queries, live, top_k)
        query_heads, tokens, _ = hits.slots.shape
        output = np.zeros((query_heads, tokens, self._spec.value_dim), dtype=np.float32)
        lse = np.full((query_heads, tokens), -np.inf, dtype=np.float32)
        if not live:
            return Attention(output=output, lse=lse, slots=hits.slots)
        group, each = query_heads // self._spec.heads, work.gathered(top_k, self._spec.value_dim)

        def weigh(head: int, part: slice) -> None:
            v = self._gather(self._values[head // group], hits.slots[head, part], self._spec.stored_values)
            scaled = np.float32(scale) * hits.scores[head, part]
            output[head, part], lse[head, part] = attention_cpu.attend(scaled, v)

        yield from in_parts(query_heads, tokens, each=each, most=self._gathered_tokens_max(top_k), do=weigh)
        return Attention(output=output, lse=lse, slots=hits.slots)

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
            chosen = slots[head, part]
            gradient[head, part] = attention_cpu.attend_backward(
                q[head, part],
                self._gather(self._keys[head // group], chosen, self._spec.dtype),
                self._gather(self._values[head // group], chosen, self._spec.stored_values),
                present=chosen >= 0,
                scale=scale,
                grad_output=go[head, part],
                grad_lse=None if grad_lse is None else grad_lse[head, part],
            )

        if (slots >= 0).any():
            most = self._gathered_tokens_max(top_k)
            yield from in_parts(query_heads, tokens, each=each, most=most, do=derive)
        return gradient

    def _keys_of(self, head: int, slots: slice) -> Float32:
        """Keys [n, Dk] of a head as float32: in place, or widened."""
        return to_float32(self._keys[head, slots], self._spec.dtype)

    def _gathered_tokens_max(self, top_k: int) -> int:
        widest = max(self._spec.key_dim, self._spec.value_dim)
        return max(1, GATHERED_BYTES_MAX // (4 * top_k * widest))

    @staticmethod
    def _gather(rows: Raw | RowBytes, slots: Int64, dtype: Dtype | ValueDtype) -> Float32:
        """Rows [t, K, D] of one head's buffer [slots, D], of `dtype`; of any finite content for slot -1."""
        return widened(rows[slots.clip(min=0)], dtype)
