"""A GPU as a device: buffers in PyTorch, searched in place, exactly or by an inverted file.

The same code runs on CPU tensors, with fewer ways to search exactly; that is how it is tested where there
is no GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recollect_server.domain import int8_rows, work
from recollect_server.domain.arrays import DenseArray, Float32, Int64, Raw, dtype_in
from recollect_server.domain.ports import Attention, Hits, IndexState, Store
from recollect_server.domain.ring import Write
from recollect_server.domain.spec import Dtype, NamespaceSpec, ValueDtype
from recollect_server.domain.steps import Steps
from recollect_server.engine import attention_torch, torch_scan
from recollect_server.engine.no_upkeep import NoUpkeep
from recollect_server.engine.ranges import length_of, placed
from recollect_server.engine.row_by_row import joined, stacked
from recollect_server.engine.tiles import in_parts, tokens_of_part
from recollect_server.engine.torch_choice import AUTO, Choice
from recollect_server.engine.torch_index import BankIndex
from recollect_server.engine.torch_memory import exhausts, exhausts_in_steps
from recollect_server.engine.torch_rows import Row, attend_together, fitting
from recollect_server.engine.torch_rule import IndexRule
from recollect_server.engine.torch_search import ExactSearch, searches_for

TORCH_TYPES = {
    Dtype.FLOAT32: torch.float32,
    Dtype.FLOAT16: torch.float16,
    Dtype.BFLOAT16: torch.bfloat16,
}

TOGETHER_MAX = 64
"""Queries of all heads, up to which several banks are read together; more give a device enough to do."""

GATHERED_BYTES_MAX = 512 * 1024 * 1024
"""For gradients, retrieved pairs are gathered in blocks of so many bytes: it bounds the scratch memory."""


class TorchDevice:
    """Implements the `Device` port.

    Args:
        device: For PyTorch: "cuda" (the current one, from now on), "cuda:1", or "cpu".
        search: How to search exactly: "faiss", "product" or "fused" where there are such; "auto" measures.
        index: What banks are searched by, whatever their namespaces ask for; for tests.
        ways: To search exactly; those of the device if None.

    Raises:
        ValueError: There is no such search.
        RuntimeError: A GPU is asked for, but the FAISS that is installed is for the CPU.
    """

    def __init__(
        self,
        device: str,
        *,
        search: str = AUTO,
        index: IndexRule | None = None,
        ways: Sequence[ExactSearch] | None = None,
    ) -> None:
        self._device = torch.device(device)
        if self._device == torch.device("cuda"):
            # Which one is current may change, and differs between threads.
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._index = index
        ways = searches_for(self._device) if ways is None else ways
        self._choice = Choice(ways, self._device, forced=search)

    @property
    def name(self) -> str:
        """The card's name, or the device's."""
        if self._device.type == "cuda":
            return torch.cuda.get_device_name(self._device)
        return str(self._device)

    def store(self, spec: NamespaceSpec) -> TorchStore:
        """An empty store."""
        rule = self._index or IndexRule(index=spec.index.value, recall=spec.recall)
        return TorchStore(spec, self._device, self._choice, index=rule)

    def narrowed(self, values: Float32, dtype: Dtype) -> DenseArray:
        """See `Device.narrowed`."""
        return _download(torch.from_numpy(values).to(TORCH_TYPES[dtype]), dtype)


class TorchStore(NoUpkeep):
    """Implements the `Store` port: keys [Hkv, slots, Dk] and values [Hkv, slots, Dv], apart.

    Values that are stored as integers are rows of bytes, [Hkv, slots, Dv + STEP_BYTES].
    """

    __slots__ = ("_choice", "_device", "_index", "_keys", "_packs", "_spec", "_values")

    def __init__(
        self, spec: NamespaceSpec, device: torch.device, choice: Choice, *, index: IndexRule
    ) -> None:
        self._spec = spec
        self._device = device
        self._choice = choice
        self._index = BankIndex(index)
        self._packs = spec.value_dtype is ValueDtype.INT8
        self._keys, self._values = self._zeros(0)

    @exhausts_in_steps
    def growing(self, allocated: int, live: Sequence[slice]) -> Steps[None]:
        """See `Store.growing`. A GPU copies a gigabyte in some milliseconds: it does so in one step."""
        yield work.moved(length_of(live) * self._spec.entry_bytes)
        # All that takes memory comes first: where there is none, nothing has moved.
        places = _places(live, self._device)
        keys, values = self._zeros(allocated)
        for old, new in ((self._keys, keys), (self._values, values)):
            _copy(old, new, live)
        for old in (self._keys, self._values):
            old.zero_()
        self._keys, self._values = keys, values
        self._index.moved(places, allocated)

    def touch(self, slots: int) -> Steps[None]:
        """See `Store.touch`. A card's memory is there."""
        del slots
        yield 0

    @exhausts
    def write(self, writes: Sequence[Write], keys: DenseArray, values: DenseArray) -> None:
        """See `Store.write`. Head by head, where slots lie together: so it takes no memory of the card."""
        k = _on_host(keys)
        v = torch.from_numpy(int8_rows.pack(values.float32())) if self._packs else _on_host(values)
        for write in writes:
            for rows, new in ((self._keys, k), (self._values, v)):
                for head in range(self._spec.heads):
                    rows[head, write.slots].copy_(new[head, write.tokens])
            self._index.wrote(write.slots, self._keys[:, write.slots])

    @exhausts_in_steps
    def compacting(self, slots: Int64, head: int) -> Steps[None]:
        """See `Store.compacting`. Head by head: there is no memory for another bank on a full card."""
        yield work.moved(slots.size * self._spec.entry_bytes)
        places = torch.from_numpy(slots).to(self._device)
        allocated = self._keys.shape[1]
        parts = list(placed(slots.size, allocated, head=head, most=allocated))
        # All that takes memory comes first: where there is none, nothing has moved.
        moving = [(rows, rows.new_empty((slots.size, rows.shape[2]))) for rows in (self._keys, self._values)]
        for rows, scratch in moving:
            for row in rows:
                torch.index_select(row, 0, places, out=scratch)
                for part, place in parts:
                    row[place : place + part.stop - part.start].copy_(scratch[part])
            scratch.zero_()  # which is to leave nothing behind either
        self._index.moved(places, allocated, head=head)

    def clear(self) -> None:
        """See `Store.clear`."""
        self._index.clear()
        self._keys.zero_()
        self._values.zero_()
        self._keys, self._values = self._zeros(0)

    @property
    def index_state(self) -> IndexState:
        """See `Store.index_state`."""
        return self._index.state

    @property
    def index_bytes(self) -> int:
        """See `Store.index_bytes`."""
        return self._index.bytes

    def search_work(self, queries: int, entries: int) -> int:
        """See `Store.search_work`."""
        return self._spec.heads * self._index.search_work(queries, entries, dim=self._spec.key_dim)

    @exhausts_in_steps
    def search(
        self, queries: DenseArray, live: Sequence[slice], top_k: int, *, exact: bool = False
    ) -> Steps[Hits]:
        """See `Store.search`."""
        _, scores, slots = yield from self._search(self._upload(queries), live, top_k, exact=exact)
        shape = (*queries.shape[:2], top_k)
        return Hits(scores=scores.view(shape).cpu().numpy(), slots=slots.view(shape).cpu().numpy())

    @exhausts_in_steps
    def attend(
        self, queries: DenseArray, live: Sequence[slice], top_k: int, *, scale: float, exact: bool = False
    ) -> Steps[Attention]:
        """See `Store.attend`."""
        way, scores, slots = yield from self._search(self._upload(queries), live, top_k, exact=exact)
        heads, tokens, _ = slots.shape
        value_dim = self._spec.value_dim
        output = torch.zeros((heads, tokens, value_dim), device=self._device)
        lse = torch.full((heads, tokens), float("-inf"), device=self._device)
        if live:
            left, each, first = (yield 0), heads * work.gathered(top_k, value_dim), 0
            weigh = attention_torch.weigh if self._packs else way.weigh
            while first < tokens:
                size = tokens_of_part(left, tokens=tokens - first, each=each, most=tokens)
                part = slice(first, first + size)
                output[:, part], lse[:, part] = weigh(scores[:, part], slots[:, part], self._values, scale)
                first += size
                left = yield from self._pause(size * each)
        shape = queries.shape[:2]
        return Attention(
            output=output.view(*shape, value_dim).cpu().numpy(),
            lse=lse.view(shape).cpu().numpy(),
            slots=slots.view(*shape, top_k).cpu().numpy(),
        )

    @exhausts_in_steps
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
        first, count = 0, math.prod(queries.shape[1:3])
        while first < len(rows):
            small = (self._small_row(*row, exact=exact) for row in rows[first:] if count <= TOGETHER_MAX)
            some, took = fitting(small, count // self._spec.heads, left)
            asked = DenseArray(queries.raw[first : first + len(some)], queries.dtype)
            found = attend_together(some, self._upload(asked), top_k, scale=scale) if len(some) > 1 else None
            if found is not None:
                parts.append(found)
                left = yield from self._pause(took)
                first += len(some)
                continue
            store, live = rows[first]
            alone = yield from store.attend(queries.row(first), live, top_k, scale=scale, exact=exact)
            parts.append(stacked([alone]))
            left = yield 0
            first += 1
        return joined(parts)

    def _small_row(self, store: Store, live: Sequence[slice], *, exact: bool) -> Row | None:
        """A bank that may be read with others."""
        if not isinstance(store, TorchStore) or not live:
            return None
        is_small = exact or store._index.is_too_small(live)
        return Row(store._keys, store._values, live) if is_small else None

    @exhausts_in_steps
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
        q, go = self._upload(queries).float(), self._upload(grad_output).float()
        gradient = torch.zeros_like(q)
        chosen = torch.from_numpy(slots).to(self._device)
        glse = None if grad_lse is None else torch.from_numpy(grad_lse.copy()).to(self._device)
        query_heads, tokens, top_k = slots.shape
        group = query_heads // self._spec.heads
        each = work.gathered(top_k, self._spec.key_dim + self._spec.value_dim)

        def derive(head: int, part: slice) -> None:
            gradient[head, part] = attention_torch.attend_backward(
                q[head, part],
                _gather(self._keys[head // group], chosen[head, part]),
                _gather(self._values[head // group], chosen[head, part]),
                present=chosen[head, part] >= 0,
                scale=scale,
                grad_output=go[head, part],
                grad_lse=None if glse is None else glse[head, part],
            )
            self._synchronize()

        if (slots >= 0).any():
            most = self._gathered_tokens_max(top_k)
            yield from in_parts(query_heads, tokens, each=each, most=most, do=derive)
        result: Float32 = gradient.cpu().numpy()
        return result

    def keys(self, slots: Int64, *, into: Raw | None = None, head: int | None = None) -> DenseArray:
        """See `Store.keys`."""
        return self._pairs(self._keys, slots, into, head)

    def values(self, slots: Int64, *, into: Raw | None = None, head: int | None = None) -> DenseArray:
        """See `Store.values`."""
        return self._pairs(self._values, slots, into, head)

    def _search(
        self, q: Tensor, live: Sequence[slice], top_k: int, *, exact: bool
    ) -> Steps[tuple[ExactSearch, Tensor, Tensor]]:
        """Scores float32 and slots int64 [Hkv, Hq/Hkv * T, K] of q [Hq, T, Dk], and what can weigh them."""
        heads, dim = self._spec.heads, self._spec.key_dim
        grouped = q.reshape(heads, -1, dim)  # [Hkv, Hq/Hkv * T, Dk]
        way = yield from self._choice.way_for(
            heads=heads,
            dims=(dim, self._spec.value_dim),
            dtype=q.dtype,
            top_k=top_k,
            queries=grouped.shape[1],
        )
        if exact:
            found = yield from torch_scan.exact(
                way, grouped, self._keys, live=live, top_k=top_k, pause=self._pause
            )
        else:
            found = yield from self._index.search(
                way, grouped, self._keys, live=live, top_k=top_k, pause=self._pause
            )
        return way, *found

    def _pause(self, done: int) -> Steps[int]:
        """Yields once what it is given to have done has been done."""
        self._synchronize()
        return (yield done)

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _gathered_tokens_max(self, top_k: int) -> int:
        widest = max(self._spec.key_dim, self._spec.value_dim)
        return max(1, GATHERED_BYTES_MAX // (4 * top_k * widest))

    @exhausts
    def _pairs(self, buffer: Tensor, slots: Int64, into: Raw | None, head: int | None) -> DenseArray:
        chosen = torch.from_numpy(slots).to(self._device)
        query_heads = slots.shape[0]
        rows = torch.zeros((*slots.shape, buffer.shape[2]), dtype=buffer.dtype, device=self._device)
        for asking in range(query_heads):
            asked = self._spec.head_of(asking, query_heads) if head is None else head
            present = chosen[asking] >= 0
            rows[asking][present] = buffer[asked][chosen[asking][present]]
        is_packed = rows.dtype is torch.uint8
        pairs = attention_torch.widened(rows).to(TORCH_TYPES[self._spec.dtype]) if is_packed else rows
        fetched = _download(pairs, self._spec.dtype)
        if into is None:
            return fetched
        dtype = dtype_in(into, self._spec.dtype)
        into[...] = fetched.raw if dtype is fetched.dtype else fetched.float32()
        return DenseArray(into, dtype)

    def _upload(self, array: DenseArray) -> Tensor:
        return _on_host(array).to(self._device)

    def _zeros(self, slots: int) -> tuple[Tensor, Tensor]:
        """Buffers for keys and values."""
        heads, stored, on = self._spec.heads, TORCH_TYPES[self._spec.dtype], self._device
        of_values = torch.uint8 if self._packs else stored
        width = self._spec.value_bytes // of_values.itemsize
        keys = torch.zeros((heads, slots, self._spec.key_dim), dtype=stored, device=on)
        return keys, torch.zeros((heads, slots, width), dtype=of_values, device=on)


def _gather(rows: Tensor, slots: Tensor) -> Tensor:
    """Rows [t, K, D] in float32 of one head's buffer [slots, D]; of any finite content for slot -1."""
    return attention_torch.widened(rows[slots.clamp(min=0)])


def _places(live: Sequence[slice], device: torch.device) -> Tensor:
    """The slots of slices, in order."""
    slots = [torch.arange(part.start, part.stop, device=device) for part in live]
    return torch.cat(slots) if slots else torch.zeros(0, dtype=torch.int64, device=device)


def _copy(old: Tensor, new: Tensor, live: Sequence[slice]) -> None:
    first = 0
    for segment in live:
        size = segment.stop - segment.start
        new[:, first : first + size] = old[:, segment]
        first += size


def _on_host(array: DenseArray) -> Tensor:
    # torch.from_numpy wants a writable array and knows no bfloat16: its bits travel as int16.
    raw = np.ascontiguousarray(array.raw)
    bits = torch.from_numpy(raw.view(np.int16 if raw.itemsize == 2 else np.int32).copy())
    return bits.view(TORCH_TYPES[array.dtype])


def _download(pairs: Tensor, dtype: Dtype) -> DenseArray:
    if dtype is Dtype.BFLOAT16:
        raw: Raw = pairs.cpu().view(torch.int16).numpy().view(np.uint16)
    else:
        raw = pairs.cpu().numpy()
    return DenseArray(raw, dtype)
