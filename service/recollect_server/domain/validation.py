"""Checks on the arguments of calls, before anything is allocated or given to FAISS."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from recollect_server.domain import int8_rows
from recollect_server.domain.arrays import LARGEST, DenseArray, Float32, Int64
from recollect_server.domain.errors import InvalidArgumentError
from recollect_server.domain.eviction import BeforeSequence, ByIds, Everything, OlderThan, Oldest, Selector
from recollect_server.domain.int8_rows import Int8Array
from recollect_server.domain.limits import Limits
from recollect_server.domain.spec import Dtype, NamespaceSpec, validate_name

SCORED_MAX = 2.0**50
"""Largest element of a key or query (about 1e15), so that no inner product overflows float32: FAISS takes an
entry whose score is infinite for one that is not there."""

DESCRIPTION_BYTES = 192
"""Of what an answer tells of one bank, beside the name of its stream."""

SCALE_MIN, SCALE_MAX = 1e-30, 1e5
"""So that no scaled score is zero or infinite in float32."""


def check_streams(streams: Sequence[str], limits: Limits, *, distinct: bool) -> None:
    """One valid stream name per batch row.

    Raises:
        InvalidArgumentError: No row, too many, a bad name, or a name twice where that is ambiguous.
    """
    if not 1 <= len(streams) <= limits.rows_max:
        raise InvalidArgumentError("streams", f"has {len(streams)} names; 1 to {limits.rows_max} are allowed")
    for index, stream in enumerate(streams):
        validate_name(f"streams[{index}]", stream, limits)
    if distinct and len(set(streams)) != len(streams):
        twice = next(s for i, s in enumerate(streams) if s in streams[:i])
        raise InvalidArgumentError("streams", f"names {twice!r} twice; each row needs a stream of its own")


def check_layers(layers: Sequence[int], limits: Limits) -> None:
    """Layers that a call names, each once: what is named twice would be done twice.

    Raises:
        InvalidArgumentError: Too many, or one twice.
    """
    if len(layers) > limits.layers_max:
        raise InvalidArgumentError(
            "layers", f"has {len(layers)} numbers; at most {limits.layers_max} are allowed"
        )
    if len(set(layers)) != len(layers):
        raise InvalidArgumentError("layers", f"names a layer twice: {list(layers)}")


def check_top_k(top_k: int, limits: Limits) -> None:
    """Raises InvalidArgumentError unless 1 <= top_k <= the bound, beyond which GPU FAISS aborts."""
    if not 1 <= top_k <= limits.top_k_max:
        raise InvalidArgumentError("top_k", f"is {top_k}; it must be from 1 to {limits.top_k_max}")


def check_pairs_dtype(dtype: Dtype | None, spec: NamespaceSpec) -> None:
    """Raises InvalidArgumentError unless keys and values are wanted as stored (None), or as float32."""
    if dtype not in (None, spec.dtype, Dtype.FLOAT32):
        raise InvalidArgumentError(
            "pairs_dtype", f"is {dtype.value}; it is {spec.dtype.value}, as stored, or float32, or left out"
        )


def check_scale(scale: float) -> None:
    """Raises InvalidArgumentError unless scale is positive and finite in float32: top_k goes by q.k."""
    if not SCALE_MIN <= scale <= SCALE_MAX:
        raise InvalidArgumentError("scale", f"is {scale}; it must be from {SCALE_MIN} to {SCALE_MAX}")


def check_entries(
    keys: DenseArray,
    values: DenseArray,
    *,
    rows: int,
    lengths: Sequence[int] | None,
    spec: NamespaceSpec,
    limits: Limits,
) -> list[int]:
    """Keys [B, Hkv, T, Dk] and values [B, Hkv, T, Dv] of an add.

    Returns:
        How many tokens each row adds.

    Raises:
        InvalidArgumentError: Names the argument, what came and what was expected.
    """
    tokens = _tokens(keys, "keys")
    _check_shape("keys", keys, (rows, spec.heads, tokens, spec.key_dim), "[B, Hkv, T, Dk]")
    _check_tokens("keys", tokens, limits)
    _check_shape("values", values, (rows, spec.heads, tokens, spec.value_dim), "[B, Hkv, T, Dv]")
    for argument, array in (("keys", keys), ("values", values)):
        _check_dtype(argument, array, spec)
    checked = _checked_lengths(lengths, rows, tokens)
    for row, length in enumerate(checked):
        for argument, array in (("keys", keys), ("values", values)):
            part = DenseArray(array.raw[row, :, :length], array.dtype)
            _check_elements(f"{argument}[{row}]", part, scored=array is keys)
    return checked


def check_queries(
    argument: str,
    queries: DenseArray | Int8Array,
    *,
    rows: int,
    dim: int,
    spec: NamespaceSpec,
    limits: Limits,
) -> None:
    """Queries [B, Hq, T, D], or a gradient of that shape; Hq is a multiple of Hkv.

    Raises:
        InvalidArgumentError: Names the argument, what came and what was expected.
    """
    tokens = _tokens(queries, argument)
    heads = queries.shape[1]
    if heads < 1 or heads % spec.heads or heads > limits.heads_max * spec.heads:
        raise InvalidArgumentError(
            argument, f"has {heads} heads; it must be a multiple of the namespace's {spec.heads}"
        )
    _check_shape(argument, queries, (rows, heads, tokens, dim), "[B, Hq, T, D]")
    _check_tokens(argument, tokens, limits)
    if isinstance(queries, Int8Array):
        _check_steps(argument, queries.steps, spec)
    else:
        _check_dtype(argument, queries, spec)
        _check_elements(argument, queries, scored=argument == "queries")


def check_grad_lse(grad_lse: Float32, shape: tuple[int, ...]) -> None:
    """grad_lse float32 [B, Hq, T], finite.

    Raises:
        InvalidArgumentError: It is not.
    """
    if grad_lse.shape != shape:
        raise InvalidArgumentError(
            "grad_lse", f"has shape {list(grad_lse.shape)}; expected {list(shape)} [B, Hq, T]"
        )
    if not np.isfinite(grad_lse).all():
        raise InvalidArgumentError("grad_lse", "has NaN or infinite elements")


def check_ids(ids: Int64, shape: tuple[int, ...], limits: Limits) -> None:
    """Ids int64 [B, Hq, T, K] for queries of shape [B, Hq, T, Dk].

    Raises:
        InvalidArgumentError: Another shape, or too many per query.
    """
    if ids.ndim != 4 or ids.shape[:3] != shape[:3]:
        raise InvalidArgumentError(
            "ids", f"has shape {list(ids.shape)}; expected [{shape[0]}, {shape[1]}, {shape[2]}, K]"
        )
    check_top_k(ids.shape[3], limits)


def check_answer_bytes(
    hits: int, *, hit_bytes: int, other_bytes: int, limits: Limits, streamed: bool = False
) -> None:
    """Refuses a read whose answer would not fit a message or stream, before anything is allocated for it.

    Args:
        hits: B * Hq * T * K.
        hit_bytes: Of one hit: its score, id and, where asked for, its key and value.
        other_bytes: The rest of the answer.
        limits: The server's bounds.
        streamed: It is sent in chunks.

    Raises:
        InvalidArgumentError: It would not fit.
    """
    most = limits.stream_bytes_max if streamed else limits.message_bytes_max
    needed = hits * hit_bytes + other_bytes
    if needed > most:
        raise InvalidArgumentError(
            "queries",
            f"and top_k ask for an answer of {needed:,} bytes; at most {most:,} are sent "
            "in one. Ask for fewer rows or tokens in one call",
        )


def check_described(streams: Sequence[str], limits: Limits) -> None:
    """Refuses to describe more banks than are told of in one answer; `streams`: the name of each bank's."""
    most = limits.message_bytes_max
    needed = sum(DESCRIPTION_BYTES + len(stream.encode()) for stream in streams)
    if needed > most:
        raise InvalidArgumentError(
            "streams",
            f"have {len(streams):,} banks, whose details take {needed:,} bytes; at most {most:,} are sent in "
            "one answer. Name fewer streams",
        )


def check_min_sequences(min_sequences: Sequence[int], rows: int) -> None:
    """One per row, or none at all."""
    if min_sequences and len(min_sequences) != rows:
        raise InvalidArgumentError(
            "min_sequences", f"has {len(min_sequences)} elements for {rows} streams; give one each, or none"
        )


def check_selector(selector: Selector, limits: Limits) -> None:
    """Raises InvalidArgumentError for a selector that can mean nothing."""
    match selector:
        case ByIds(ids):
            if ids.size > limits.ids_max:
                raise InvalidArgumentError("ids", f"has {ids.size} ids; at most {limits.ids_max} are allowed")
        case Oldest(entries):
            if entries < 0:
                raise InvalidArgumentError(
                    "oldest", f"is {entries}; it counts entries, so it cannot be negative"
                )
        case OlderThan(age_s):
            if not (math.isfinite(age_s) and age_s >= 0):
                raise InvalidArgumentError("older_than_s", f"is {age_s}; it must be finite and not negative")
        case BeforeSequence() | Everything():
            pass


def _tokens(array: DenseArray | Int8Array, argument: str) -> int:
    if len(array.shape) != 4:
        raise InvalidArgumentError(
            argument, f"has shape {list(array.shape)}; expected 4 dimensions [B, H, T, D]"
        )
    return array.shape[2]


def _check_shape(argument: str, array: DenseArray | Int8Array, expected: tuple[int, ...], words: str) -> None:
    if array.shape != expected:
        raise InvalidArgumentError(
            argument, f"has shape {list(array.shape)}; expected {list(expected)} {words}"
        )


def _check_tokens(argument: str, tokens: int, limits: Limits) -> None:
    if not 1 <= tokens <= limits.tokens_max:
        raise InvalidArgumentError(
            argument, f"has {tokens} tokens; 1 to {limits.tokens_max} are allowed in one call"
        )


def _check_dtype(argument: str, array: DenseArray, spec: NamespaceSpec) -> None:
    if array.dtype is not spec.dtype:
        raise InvalidArgumentError(
            argument, f"is {array.dtype.value}; this namespace holds {spec.dtype.value}"
        )


def _check_elements(argument: str, array: DenseArray, *, scored: bool = False) -> None:
    """Finite, and of what is `scored` so small that scores are, too."""
    largest = array.largest()
    if not math.isfinite(largest):
        where = np.argwhere(array.nonfinite())
        raise InvalidArgumentError(
            argument,
            f"has {len(where)} NaN or infinite elements in {array.dtype.value}, the first at "
            f"{where[0].tolist()}; nothing was stored",
        )
    if scored and largest > SCORED_MAX:
        raise InvalidArgumentError(
            argument, f"has an element of size {largest:g}; at most {SCORED_MAX:g}, or scores would overflow"
        )


def _check_steps(argument: str, steps: Float32, spec: NamespaceSpec) -> None:
    """Of rows of integers: what they are times. As `_check_elements` of what they are then, at most."""
    if not (np.isfinite(steps).all() and (steps >= 0).all()):
        raise InvalidArgumentError(
            argument, "has rows of int8 that are times NaN, infinite or negative numbers"
        )
    largest, most = float(steps.max(initial=0)) * int8_rows.LOWEST, min(SCORED_MAX, LARGEST[spec.dtype])
    if largest > most:
        raise InvalidArgumentError(
            argument, f"has rows of int8 with elements of up to {largest:g}; {most:g} is the most here"
        )


def _checked_lengths(lengths: Sequence[int] | None, rows: int, tokens: int) -> list[int]:
    if not lengths:
        return [tokens] * rows
    if len(lengths) != rows:
        raise InvalidArgumentError("lengths", f"has {len(lengths)} elements for {rows} rows")
    for row, length in enumerate(lengths):
        if not 0 <= length <= tokens:
            raise InvalidArgumentError(f"lengths[{row}]", f"is {length}; it must be from 0 to {tokens}")
    return list(lengths)
