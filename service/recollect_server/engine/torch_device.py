"""A GPU as a device: buffers in PyTorch, search by FAISS in place.

The same code runs on CPU tensors, where a matrix product and a top-k stand in for `faiss.knn_gpu`;
that is how it is tested where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recollect_server.domain import work
from recollect_server.domain.arrays import DenseArray, Float32, Int64, Raw
from recollect_server.domain.ports import Attention, Hits, IndexState
from recollect_server.domain.ring import Write
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.steps import Steps
from recollect_server.engine import attention_torch
from recollect_server.engine.tiles import queries_of_tile, rows_of_tile, tokens_of_part
from recollect_server.engine.torch_search import Search, search_for

TORCH_TYPES = {
    Dtype.FLOAT32: torch.float32,
    Dtype.FLOAT16: torch.float16,
    Dtype.BFLOAT16: torch.bfloat16,
}

GATHERED_BYTES_MAX = 512 * 1024 * 1024
"""Retrieved pairs are gathered in blocks of so many bytes, which bounds the scratch memory."""


class TorchDevice:
    """Implements the `Device` port.

    Args:
        device: For PyTorch: "cuda", "cuda:1", or "cpu".
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        self._search = search_for(self._device)

    @property
    def name(self) -> str:
        """The card's name, or the device's."""
        if self._device.type == "cuda":
            return torch.cuda.get_device_name(self._device)
        return str(self._device)

    def store(self, spec: NamespaceSpec) -> TorchStore:
        """An empty store."""
        return TorchStore(spec, self._device, self._search)


class TorchStore:
    """Implements the `Store` port: keys [Hkv, slots, Dk] and values [Hkv, slots, Dv], apart."""

    __slots__ = ("_device", "_keys", "_spec", "_top_k_of", "_values")

    def __init__(self, spec: NamespaceSpec, device: torch.device, search: Search) -> None:
        self._spec = spec
        self._device = device
        self._top_k_of = search
        self._keys = self._zeros(0, spec.key_dim)
        self._values = self._zeros(0, spec.value_dim)

    def grow(self, allocated: int, live: Sequence[slice]) -> None:
        """See `Store.grow`."""
        self._keys = _moved(self._keys, self._zeros(allocated, self._spec.key_dim), live)
        self._values = _moved(self._values, self._zeros(allocated, self._spec.value_dim), live)

    def write(self, writes: Sequence[Write], keys: DenseArray, values: DenseArray) -> None:
        """See `Store.write`."""
        k, v = self._upload(keys), self._upload(values)
        for write in writes:
            self._keys[:, write.slots] = k[:, write.tokens]
            self._values[:, write.slots] = v[:, write.tokens]

    def compact(self, slots: Int64) -> None:
        """See `Store.compact`."""
        places = torch.from_numpy(slots).to(self._device)
        for rows in (self._keys, self._values):
            chosen = rows[:, places]  # a copy, which is to leave nothing behind either
            rows[:, : slots.size] = chosen
            chosen.zero_()

    def clear(self) -> None:
        """See `Store.clear`."""
        self._keys.zero_()
        self._values.zero_()
        self._keys = self._zeros(0, self._spec.key_dim)
        self._values = self._zeros(0, self._spec.value_dim)

    @property
    def index_state(self) -> IndexState:
        """See `Store.index_state`."""
        return IndexState()

    def search(
        self, queries: DenseArray, live: Sequence[slice], top_k: int, *, exact: bool = False
    ) -> Steps[Hits]:
        """See `Store.search`."""
        scores, slots = yield from self._search(self._upload(queries), live, top_k)
        return Hits(scores=scores.cpu().numpy(), slots=slots.cpu().numpy())

    def attend(
        self, queries: DenseArray, live: Sequence[slice], top_k: int, *, scale: float, exact: bool = False
    ) -> Steps[Attention]:
        """See `Store.attend`."""
        scores, slots = yield from self._search(self._upload(queries), live, top_k)  # [Hq, T, K]
        query_heads, tokens, _ = slots.shape
        output = torch.zeros((query_heads, tokens, self._spec.value_dim), device=self._device)
        lse = torch.full((query_heads, tokens), float("-inf"), device=self._device)
        if live:
            group, each = query_heads // self._spec.heads, work.gathered(top_k, self._spec.value_dim)
            left, most = (yield 0), self._gathered_tokens_max(top_k)
            for head in range(query_heads):
                first = 0
                while first < tokens:
                    size = tokens_of_part(left, tokens=tokens - first, each=each, most=most)
                    part = slice(first, first + size)
                    v = _gather(self._values[head // group], slots[head, part])  # [t, K, Dv]
                    scaled = scale * scores[head, part]
                    output[head, part], lse[head, part] = attention_torch.attend(scaled, v)
                    first += size
                    left = yield from self._pause(size * each)
        return Attention(output=output.cpu().numpy(), lse=lse.cpu().numpy(), slots=slots.cpu().numpy())

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
        left = yield 0
        q, go = self._upload(queries).float(), self._upload(grad_output).float()
        gradient = torch.zeros_like(q)
        if not (slots >= 0).any():
            return np.zeros(gradient.shape, dtype=np.float32)
        chosen = torch.from_numpy(slots).to(self._device)
        glse = None if grad_lse is None else torch.from_numpy(grad_lse.copy()).to(self._device)
        query_heads, tokens, top_k = slots.shape
        group, most = query_heads // self._spec.heads, self._gathered_tokens_max(top_k)
        each = work.gathered(top_k, self._spec.key_dim + self._spec.value_dim)
        for head in range(query_heads):
            first = 0
            while first < tokens:
                size = tokens_of_part(left, tokens=tokens - first, each=each, most=most)
                part = slice(first, first + size)
                gradient[head, part] = attention_torch.attend_backward(
                    q[head, part],
                    _gather(self._keys[head // group], chosen[head, part]),
                    _gather(self._values[head // group], chosen[head, part]),
                    present=chosen[head, part] >= 0,
                    scale=scale,
                    grad_output=go[head, part],
                    grad_lse=None if glse is None else glse[head, part],
                )
                first += size
                left = yield from self._pause(size * each)
        result: Float32 = gradient.cpu().numpy()
        return result

    def keys(self, slots: Int64) -> DenseArray:
        """See `Store.keys`."""
        return self._pairs(self._keys, slots)

    def values(self, slots: Int64) -> DenseArray:
        """See `Store.values`."""
        return self._pairs(self._values, slots)

    def _search(self, q: Tensor, live: Sequence[slice], top_k: int) -> Steps[tuple[Tensor, Tensor]]:
        """Scores float32 and slots int64 [Hq, T, K] of q [Hq, T, Dk]."""
        left = yield 0
        grouped = q.reshape(self._spec.heads, -1, q.shape[-1])  # [Hkv, Hq/Hkv * T, Dk]
        count, dim = grouped.shape[1:]
        scores = torch.full((*grouped.shape[:2], top_k), float("-inf"), device=self._device)
        slots = torch.full(scores.shape, -1, dtype=torch.int64, device=self._device)
        for head in range(self._spec.heads):
            for segment in live:
                first = segment.start
                while first < segment.stop:
                    rows = rows_of_tile(left, queries=count, rows=segment.stop - first, dim=dim)
                    keys = self._keys[head, first : first + rows]  # [n, Dk]: a view
                    done = 0
                    while done < count:
                        size = queries_of_tile(left, queries=count - done, rows=rows, dim=dim)
                        part = slice(done, done + size)
                        # FAISS pads beyond the rows and aborts on an empty database: ask for what there is.
                        found, hits = self._top_k_of(grouped[head, part], keys, min(top_k, rows))
                        _merge(scores[head, part], slots[head, part], found, hits + first)
                        done += size
                        left = yield from self._pause(work.searched(size, rows, dim))
                    first += rows
        return scores.view(*q.shape[:2], top_k), slots.view(*q.shape[:2], top_k)

    def _pause(self, done: int) -> Steps[int]:
        """Yields once what it is given to have done has been done."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        return (yield done)

    def _gathered_tokens_max(self, top_k: int) -> int:
        widest = max(self._spec.key_dim, self._spec.value_dim)
        return max(1, GATHERED_BYTES_MAX // (4 * top_k * widest))

    def _pairs(self, buffer: Tensor, slots: Int64) -> DenseArray:
        chosen = torch.from_numpy(slots).to(self._device)
        group = slots.shape[0] // self._spec.heads
        pairs = torch.zeros((*slots.shape, buffer.shape[2]), dtype=buffer.dtype, device=self._device)
        for head in range(slots.shape[0]):
            present = chosen[head] >= 0
            pairs[head][present] = buffer[head // group][chosen[head][present]]
        return _download(pairs, self._spec.dtype)

    def _upload(self, array: DenseArray) -> Tensor:
        # torch.from_numpy wants a writable array and knows no bfloat16: its bits travel as int16.
        raw = np.ascontiguousarray(array.raw)
        bits = torch.from_numpy(raw.view(np.int16 if raw.itemsize == 2 else np.int32).copy())
        return bits.view(TORCH_TYPES[array.dtype]).to(self._device)

    def _zeros(self, slots: int, dim: int) -> Tensor:
        dtype = TORCH_TYPES[self._spec.dtype]
        return torch.zeros((self._spec.heads, slots, dim), dtype=dtype, device=self._device)


def _gather(rows: Tensor, slots: Tensor) -> Tensor:
    """Rows [t, K, D] in float32 of one head's buffer [slots, D]; of any finite content for slot -1."""
    return rows[slots.clamp(min=0)].float()


def _merge(scores: Tensor, slots: Tensor, more_scores: Tensor, more_slots: Tensor) -> None:
    """Keeps the best of both in `scores` and `slots` [N, K], which begin as -inf and -1."""
    both = torch.cat([scores, more_scores], dim=1)
    order = both.argsort(dim=1, descending=True, stable=True)[:, : scores.shape[1]]
    scores[:] = both.gather(1, order)
    slots[:] = torch.cat([slots, more_slots], dim=1).gather(1, order)


def _moved(old: Tensor, new: Tensor, live: Sequence[slice]) -> Tensor:
    first = 0
    for segment in live:
        size = segment.stop - segment.start
        new[:, first : first + size] = old[:, segment]
        first += size
    old.zero_()
    return new


def _download(pairs: Tensor, dtype: Dtype) -> DenseArray:
    if dtype is Dtype.BFLOAT16:
        raw: Raw = pairs.cpu().view(torch.int16).numpy().view(np.uint16)
    else:
        raw = pairs.cpu().numpy()
    return DenseArray(raw, dtype)
