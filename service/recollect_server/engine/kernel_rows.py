"""Small banks that are read together: one call of the kernels for many of them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_void_p
from typing import NamedTuple

import numpy as np

from recollect_server.domain.arrays import DenseArray, Float32, Int64, Raw, RowBytes
from recollect_server.domain.ports import Attention
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.engine.kernels import DTYPES, address, library, room_of, stride_of

_NOTHING = slice(0, 0)


class _Rows(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("queries", "output", "lse", "slots")),
        *((name, c_int64) for name in ("rows", "queries_per_head")),
        *((name, c_int32) for name in ("heads", "dim", "value_dim", "top_k", "room")),
        *((name, c_int32) for name in ("query_dtype", "key_dtype", "value_dtype")),
        ("scale", c_float),
    )


class Place(NamedTuple):
    """Where a bank's keys and values lie; as long as these do.

    Attributes:
        keys: Address of slot 0 of the first head.
        values: As of keys.
        key_stride: Elements from a head to the next one.
        value_stride: As of keys; of rows of INT8 in bytes.
    """

    keys: int
    values: int
    key_stride: int
    value_stride: int

    @classmethod
    def of(cls, keys: Raw, values: Raw | RowBytes) -> Place:
        """Of keys [heads, slots, Dk] and values [heads, slots, Dv or a row], contiguous within a head."""
        return cls(address(keys), address(values), stride_of(keys), stride_of(values))


class Row(NamedTuple):
    """One bank.

    Attributes:
        place: Of its keys and values.
        live: At most two slices of slots.
    """

    place: Place
    live: Sequence[slice]


def attend_rows(
    queries: Raw,
    rows: Sequence[Row],
    *,
    query_dtype: Dtype,
    spec: NamespaceSpec,
    top_k: int,
    scale: float,
) -> tuple[Float32, Float32, Int64]:
    """Exact search in several banks and softmax(scale * scores) v over what is found, in one call.

    Args:
        queries: [banks, heads, n, Dk], contiguous.
        rows: The banks.
        query_dtype: What the bits of queries mean.
        spec: Says what the bits of keys and values mean.
        top_k: K.
        scale: Of the scores.

    Returns:
        Output [banks, heads, n, Dv], 0 where there is no entry; lse [banks, heads, n], -inf there;
        slots int64 [banks, heads, n, K], best first, -1 where there are fewer.
    """
    banks, heads, count, dim = queries.shape
    output = np.empty((banks, heads, count, spec.value_dim), dtype=np.float32)
    lse = np.empty((banks, heads, count), dtype=np.float32)
    slots = np.empty((banks, heads, count, top_k), dtype=np.int64)
    places = np.array([(*place, *_bounds(live)) for place, live in rows], np.int64)
    bound = _Rows(
        *map(address, (queries, output, lse, slots)),
        banks,
        count,
        heads,
        dim,
        spec.value_dim,
        top_k,
        room_of(top_k),
        DTYPES[query_dtype],
        DTYPES[spec.dtype],
        DTYPES[spec.stored_values],
        scale,
    )
    library().rc_attend_rows(ctypes.byref(bound), address(places))
    return output, lse, slots


def _bounds(live: Sequence[slice]) -> tuple[int, int, int, int]:
    """Of at most two slices: begin, end, begin, end."""
    first, second = (*live, _NOTHING, _NOTHING)[:2]
    return first.start, first.stop, second.start, second.stop


def attend_together(
    rows: Sequence[Row], queries: DenseArray, top_k: int, *, spec: NamespaceSpec, scale: float
) -> Attention:
    """Exact attention of queries [B, Hq, T, Dk], each over a bank of its own; B is not 0."""
    banks, query_heads, tokens, dim = queries.shape
    output, lse, slots = attend_rows(
        np.ascontiguousarray(queries.raw).reshape(banks, spec.heads, -1, dim),
        rows,
        query_dtype=queries.dtype,
        spec=spec,
        top_k=top_k,
        scale=scale,
    )
    flat = (banks, query_heads, tokens)
    return Attention(
        output=output.reshape(*flat, -1), lse=lse.reshape(flat), slots=slots.reshape(*flat, top_k)
    )
