"""Small banks that are read together: a few operations of the device for all, in place of a few for each.

Keys and values of the banks are copied side by side first. That reads them once more than is needed, and
takes a GPU less time than to begin the operations of a single bank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from recollect_server.domain import work
from recollect_server.domain.ports import Attention
from recollect_server.engine import attention_torch
from recollect_server.engine.ranges import length_of
from recollect_server.engine.torch_memory import is_out_of_memory
from recollect_server.engine.torch_merge import best_of
from recollect_server.engine.torch_search import products

SCRATCH_BYTES_MAX = 512 * 1024 * 1024
"""Of copies and scores; banks that would take more are read a few at a time."""


class Row(NamedTuple):
    """One bank.

    Attributes:
        keys: [H, slots, Dk].
        values: [H, slots, Dv], or rows of bytes: see `attention_torch.widened`.
        live: At most two slices of slots, one entry at least.
    """

    keys: Tensor
    values: Tensor
    live: Sequence[slice]


def fitting(rows: Iterable[Row | None], queries: int, left: int) -> tuple[list[Row], int]:
    """Those that come first and may be read together; and what that takes, in multiply-adds.

    Args:
        rows: Banks; None: one that is read by itself.
        queries: Of each head.
        left: What a step may take; one is taken anyhow.
    """
    some: list[Row] = []
    took = widest_bytes = 0
    for row in rows:
        if row is None:
            break
        heads, _, dim = row.keys.shape
        each = heads * work.searched(queries, length_of(row.live), dim)
        widest_bytes = max(widest_bytes, _scratch_bytes(row, queries))
        if some and (took + each > left or widest_bytes * (len(some) + 1) > SCRATCH_BYTES_MAX):
            break
        took += each
        some.append(row)
    return some, took


def _scratch_bytes(row: Row, queries: int) -> int:
    """What reading a bank takes beside others of its length: copies, keys as float32, scores."""
    entry_bytes = sum(part.shape[0] * part.shape[2] * part.itemsize for part in (row.keys, row.values))
    widened_bytes = 4 * row.keys.shape[0] * (row.keys.shape[2] + queries)
    return length_of(row.live) * (2 * entry_bytes + widened_bytes)


def attend_together(rows: Sequence[Row], queries: Tensor, top_k: int, *, scale: float) -> Attention | None:
    """Exact attention of queries [B, Hq, T, Dk], each over a bank of its own.

    Args:
        rows: B of them, alike but for their lengths.
        queries: Of the dtype of keys.
        top_k: K.
        scale: Positive.

    Returns:
        On the host; None where the device has too little memory for copies.
    """
    banks, query_heads, tokens, dim = queries.shape
    grouped = queries.reshape(banks, rows[0].keys.shape[0], -1, dim)  # [B, H, N, Dk]
    try:
        output, lse, slots = _attended(rows, grouped, top_k, scale)
    except Exception as error:
        if is_out_of_memory(error):
            return None
        raise
    flat = banks, query_heads, tokens
    return Attention(
        output=output.transpose(0, 1).reshape(*flat, -1).cpu().numpy(),
        lse=lse.transpose(0, 1).reshape(flat).cpu().numpy(),
        slots=slots.transpose(0, 1).reshape(*flat, top_k).cpu().numpy(),
    )


def _attended(
    rows: Sequence[Row], queries: Tensor, top_k: int, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [H, B, N, Dv], LSE [H, B, N] and slots [H, B, N, K] of queries [B, H, N, Dk]."""
    banks, heads, count, dim = queries.shape
    lengths = torch.tensor([length_of(row.live) for row in rows], device=queries.device)
    width = max(length_of(row.live) for row in rows)
    keys = _side_by_side([row.keys for row in rows], rows, lengths, width)  # [H, B, W, Dk]
    asked = queries.transpose(0, 1).reshape(heads * banks, count, dim)
    scores = products(asked, keys.flatten(0, 1)).view(heads, banks, count, width)
    column = torch.arange(width, device=queries.device)
    scores.masked_fill_((column >= lengths[:, None])[None, :, None, :], float("-inf"))
    scores = scores.flatten(0, 1)  # [H * B, N, W]
    best, places = best_of(scores, column.expand_as(scores), top_k)
    values = _side_by_side([row.values for row in rows], rows, lengths, width).flatten(0, 1)
    each = torch.arange(heads * banks, device=queries.device)[:, None, None]
    chosen = attention_torch.widened(values[each, places.clamp(min=0)])  # [H * B, N, K, Dv]
    output, lse = attention_torch.attend(scale * best.flatten(0, 1), chosen.flatten(0, 1))
    shape = heads, banks, count
    return output.view(*shape, -1), lse.view(shape), _slots_at(places.view(*shape, top_k), rows)


def _side_by_side(buffers: Sequence[Tensor], rows: Sequence[Row], lengths: Tensor, width: int) -> Tensor:
    """Live rows [H, B, width, D] of buffers [H, slots, D]; of any finite content beyond a bank's length."""
    parts = [buffer[:, part] for buffer, row in zip(buffers, rows, strict=True) for part in row.live]
    flat = torch.cat(parts, dim=1)  # one operation, however many banks there are
    first = lengths.cumsum(0) - lengths
    places = first[:, None] + torch.arange(width, device=flat.device)
    return flat[:, places.clamp(max=flat.shape[1] - 1)]


def _slots_at(places: Tensor, rows: Sequence[Row]) -> Tensor:
    """Slots of entries at places [H, B, N, K], counted from the oldest of their bank; -1 stays."""
    segments = [(*row.live, row.live[-1])[:2] for row in rows]
    numbers = [(one.start, one.stop - one.start, other.start) for one, other in segments]
    begin, size, next_begin = torch.tensor(numbers, device=places.device).T[:, :, None, None]
    slots = torch.where(places < size, begin + places, next_begin + places - size)
    return slots.masked_fill(places < 0, -1)
