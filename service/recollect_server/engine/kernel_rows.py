"""Small banks that are read together: one call of the kernels for many of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recollect_server.domain.arrays import DenseArray, Raw
from recollect_server.domain.ports import Attention
from recollect_server.domain.spec import Dtype
from recollect_server.engine import kernels


@dataclass(frozen=True, slots=True)
class Row:
    """One bank.

    Attributes:
        keys: [Hkv, slots, Dk].
        values: [Hkv, slots, Dv].
        live: At most two slices of slots.
        dtype: What the bits of both mean.
    """

    keys: Raw
    values: Raw
    live: Sequence[slice]
    dtype: Dtype


def attend_together(rows: Sequence[Row], queries: DenseArray, top_k: int, *, scale: float) -> Attention:
    """Exact attention of queries [B, Hq, T, Dk], each over a bank of its own; B is not 0."""
    banks, query_heads, tokens, dim = queries.shape
    dtype, heads = rows[0].dtype, len(rows[0].keys)
    asked = np.ascontiguousarray(queries.raw).reshape(banks, heads, -1, dim)
    shape = asked.shape[:3]
    best = kernels.Best(asked.shape[0] * heads * asked.shape[2], top_k)
    for number in range(max(len(row.live) for row in rows)):
        parts = [row.live[number] if number < len(row.live) else slice(0, 0) for row in rows]
        keys = [row.keys for row in rows]
        kernels.scan_rows(best, asked, keys, query_dtype=queries.dtype, key_dtype=dtype, rows=parts)
    scores, slots = best.ordered()
    scores, slots = scores.reshape(*shape, top_k), slots.reshape(*shape, top_k)
    output = np.empty((*shape, rows[0].values.shape[2]), dtype=np.float32)
    lse = np.empty(shape, dtype=np.float32)
    values = [row.values for row in rows]
    kernels.attend_rows(scores, slots, values, dtype=dtype, scale=scale, output=output, lse=lse)
    flat = (banks, query_heads, tokens)
    return Attention(
        output=output.reshape(*flat, -1), lse=lse.reshape(flat), slots=slots.reshape(*flat, top_k)
    )


def joined(parts: Sequence[Attention]) -> Attention:
    """Rows of all, one after another."""
    if len(parts) == 1:
        return parts[0]
    return Attention(
        output=np.concatenate([part.output for part in parts]),
        lse=np.concatenate([part.lse for part in parts]),
        slots=np.concatenate([part.slots for part in parts]),
    )
