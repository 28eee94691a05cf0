"""Search, attend and its gradient as work: what is sent, how it is split, what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic

import numpy as np

from recollect._bits import WIRE_DTYPES
from recollect._checks import (
    Include,
    check_int,
    check_ints,
    check_layer,
    check_names,
    check_positive,
    check_queries,
    check_rank,
    check_shape,
)
from recollect._results import A, Array, AttendResult, Limits, NamespaceSpec, SearchResult
from recollect._splitting import Assembly, Part, RowSequences, TokenBytes, split_grid
from recollect._tensor import (
    UserArray,
    floats_message,
    gradient_exponents,
    ids_message,
    read_floats,
    read_ids,
    user_array,
)
from recollect._work import ATTEND, ATTEND_BACKWARD, SEARCH, Work
from recollect.v1 import memory_pb2 as pb

_SCALAR_BYTES = 4  # of a score, an LSE, or an id's offset


@dataclass(frozen=True, slots=True)
class Queries(Generic[A]):
    """What all reads have: checked, and not yet converted."""

    namespace: str
    spec: NamespaceSpec
    layer: int
    array: UserArray[A]
    streams: list[str]
    min_sequences: list[int]

    @property
    def itemsize(self) -> int:
        return WIRE_DTYPES[self.spec.dtype].itemsize

    def split(self, weight: TokenBytes, limits: Limits, hint: str) -> list[Part]:
        rows, _, tokens, _ = self.array.shape
        return split_grid(
            rows, tokens, weight, names=self.streams, namespace=self.namespace, limits=limits, hint=hint
        )


def check_read(
    namespace: str,
    spec: NamespaceSpec,
    layer: int,
    queries: A,
    *,
    streams: Sequence[str],
    min_sequences: Sequence[int] | None = None,
) -> Queries[A]:
    """Checks what all reads have."""
    array = user_array("queries", queries)
    check_queries(array.shape, spec)
    rows = array.shape[0]
    return Queries(
        namespace,
        spec,
        check_layer(layer, spec),
        array,
        check_names("streams", streams, count=rows),
        check_ints("min_sequences", min_sequences, rows, minimum=0),
    )


def prepare_search(
    read: Queries[A], *, top_k: int, include: frozenset[Include], missing_ok: bool
) -> Callable[[Limits], Work[pb.SearchResponse, SearchResult[A]]]:
    """Converts now; splits when the limits are known."""
    spec, array, dtype = read.spec, read.array, read.spec.dtype
    top_k = check_int("top_k", top_k, minimum=1)
    wire = array.to_wire(dtype)
    rows, heads, tokens, _ = array.shape

    def split(limits: Limits) -> Work[pb.SearchResponse, SearchResult[A]]:
        check_int("top_k", top_k, maximum=limits.top_k_max)
        fetched = ("keys" in include) * spec.key_dim + ("values" in include) * spec.value_dim
        weight = TokenBytes(
            up=heads * spec.key_dim * read.itemsize,
            down=heads * top_k * (2 * _SCALAR_BYTES + fetched * read.itemsize),
        )
        parts = read.split(weight, limits, "Lower top_k, include less, or use attend")
        shape = (rows, heads, tokens, top_k)
        scores = Assembly(parts, shape, WIRE_DTYPES["float32"])
        ids = Assembly(parts, shape, np.dtype(np.int64))
        keys = Assembly(parts, (*shape, spec.key_dim), WIRE_DTYPES[dtype])
        values = Assembly(parts, (*shape, spec.value_dim), WIRE_DTYPES[dtype])
        sequences = RowSequences(parts, rows)

        def build(index: int) -> pb.SearchRequest:
            part = parts[index]
            return pb.SearchRequest(
                namespace=read.namespace,
                layer=read.layer,
                streams=read.streams[part.rows],
                queries=floats_message(wire[part.rows, :, part.tokens], dtype),
                top_k=top_k,
                include_keys="keys" in include,
                include_values="values" in include,
                min_sequences=read.min_sequences[part.rows],
                missing_ok=missing_ok,
            )

        def accept(index: int, reply: pb.SearchResponse) -> None:
            scores.put(index, read_floats("scores", reply.scores, "float32", scores.shape_of(index)))
            ids.put(index, read_ids(reply.ids, ids.shape_of(index)))
            if "keys" in include:
                keys.put(index, read_floats("keys", reply.keys, dtype, keys.shape_of(index)))
            if "values" in include:
                values.put(index, read_floats("values", reply.values, dtype, values.shape_of(index)))
            sequences.put(index, reply.next_sequences)

        def finish() -> SearchResult[A]:
            return SearchResult(
                scores=array.give_exact(scores.whole),
                ids=array.give_exact(ids.whole),
                keys=array.give_floats(keys.whole, dtype) if "keys" in include else None,
                values=array.give_floats(values.whole, dtype) if "values" in include else None,
                next_sequences=sequences.latest,
            )

        return Work(SEARCH, pb.SearchResponse, True, True, len(parts), build, accept, finish)

    return split


def prepare_attend(
    read: Queries[A], *, top_k: int, scale: float | None, with_ids: bool, missing_ok: bool
) -> Callable[[Limits], Work[pb.AttendResponse, AttendResult[A]]]:
    """Converts now; splits when the limits are known."""
    spec, array, dtype = read.spec, read.array, read.spec.dtype
    top_k = check_int("top_k", top_k, minimum=1)
    factor = _scale(scale, spec)
    wire = array.to_wire(dtype)
    rows, heads, tokens, _ = array.shape

    def split(limits: Limits) -> Work[pb.AttendResponse, AttendResult[A]]:
        check_int("top_k", top_k, maximum=limits.top_k_max)
        down = spec.value_dim * read.itemsize + _SCALAR_BYTES + with_ids * top_k * _SCALAR_BYTES
        weight = TokenBytes(up=heads * spec.key_dim * read.itemsize, down=heads * down)
        parts = read.split(weight, limits, "Lower top_k, or use fewer or smaller heads")
        shape = (rows, heads, tokens)
        output = Assembly(parts, (*shape, spec.value_dim), WIRE_DTYPES[dtype])
        lse = Assembly(parts, shape, WIRE_DTYPES["float32"])
        ids = Assembly(parts, (*shape, top_k), np.dtype(np.int64))
        sequences = RowSequences(parts, rows)

        def build(index: int) -> pb.AttendRequest:
            part = parts[index]
            return pb.AttendRequest(
                namespace=read.namespace,
                layer=read.layer,
                streams=read.streams[part.rows],
                queries=floats_message(wire[part.rows, :, part.tokens], dtype),
                top_k=top_k,
                scale=factor,
                omit_ids=not with_ids,
                min_sequences=read.min_sequences[part.rows],
                missing_ok=missing_ok,
            )

        def accept(index: int, reply: pb.AttendResponse) -> None:
            output.put(index, read_floats("output", reply.output, dtype, output.shape_of(index)))
            lse.put(index, read_floats("lse", reply.lse, "float32", lse.shape_of(index)))
            if with_ids:
                ids.put(index, read_ids(reply.ids, ids.shape_of(index)))
            sequences.put(index, reply.next_sequences)

        def finish() -> AttendResult[A]:
            return AttendResult(
                output=array.give_floats(output.whole, dtype),
                lse=array.give_exact(lse.whole),
                ids=array.give_exact(ids.whole) if with_ids else None,
                next_sequences=sequences.latest,
            )

        return Work(ATTEND, pb.AttendResponse, True, True, len(parts), build, accept, finish)

    return split


def prepare_attend_backward(
    read: Queries[A], *, ids: Array, grad_output: Array, grad_lse: Array | None, scale: float | None
) -> Callable[[Limits], Work[pb.AttendBackwardResponse, A]]:
    """Converts now; splits when the limits are known."""
    spec, array, dtype = read.spec, read.array, read.spec.dtype
    shape = array.shape[:3]
    user_ids, user_grad = user_array("ids", ids), user_array("grad_output", grad_output)
    check_rank("ids", user_ids.shape, f"[{shape[0]}, {shape[1]}, {shape[2]}, K]")
    top_k = user_ids.shape[3]
    check_shape("ids", user_ids.shape, (*shape, top_k), ", to go with queries")
    check_shape("grad_output", user_grad.shape, (*shape, spec.value_dim), ", to go with queries")
    user_grad_lse = None if grad_lse is None else user_array("grad_lse", grad_lse)
    if user_grad_lse is not None:
        check_shape("grad_lse", user_grad_lse.shape, shape, ", to go with queries")
    factor = _scale(scale, spec)
    # Gradients are often too small for float16; the other formats have the range.
    exponents = gradient_exponents(user_grad, user_grad_lse) if dtype == "float16" else None
    wire, wire_ids = array.to_wire(dtype), user_ids.to_ids()
    wire_grad = user_grad.to_wire(dtype, exponents)
    wire_grad_lse = None if user_grad_lse is None else user_grad_lse.to_wire("float32")
    if wire_grad_lse is not None and exponents is not None:
        wire_grad_lse = np.ldexp(wire_grad_lse, -exponents)

    def split(limits: Limits) -> Work[pb.AttendBackwardResponse, A]:
        check_int("top_k", top_k, maximum=limits.top_k_max)
        gradients = spec.value_dim * read.itemsize + (wire_grad_lse is not None) * _SCALAR_BYTES
        up = spec.key_dim * read.itemsize + top_k * _SCALAR_BYTES + gradients
        weight = TokenBytes(up=shape[1] * up, down=shape[1] * spec.key_dim * read.itemsize)
        parts = read.split(weight, limits, "Lower top_k, or use fewer or smaller heads")
        grad_queries = Assembly(parts, (*shape, spec.key_dim), WIRE_DTYPES[dtype])

        def build(index: int) -> pb.AttendBackwardRequest:
            part = parts[index]
            rows, tokens = part.rows, part.tokens
            lse = None if wire_grad_lse is None else floats_message(wire_grad_lse[rows, :, tokens], "float32")
            return pb.AttendBackwardRequest(
                namespace=read.namespace,
                layer=read.layer,
                streams=read.streams[rows],
                queries=floats_message(wire[rows, :, tokens], dtype),
                ids=ids_message(wire_ids[rows, :, tokens]),
                scale=factor,
                grad_output=floats_message(wire_grad[rows, :, tokens], dtype),
                grad_lse=lse,
            )

        def accept(index: int, reply: pb.AttendBackwardResponse) -> None:
            expected = grad_queries.shape_of(index)
            grad_queries.put(index, read_floats("grad_queries", reply.grad_queries, dtype, expected))

        return Work(
            method=ATTEND_BACKWARD,
            reply_type=pb.AttendBackwardResponse,
            retry_safe=True,
            concurrent=True,
            count=len(parts),
            build=build,
            accept=accept,
            finish=lambda: array.give_floats(grad_queries.whole, dtype, exponents),
        )

    return split


def _scale(scale: float | None, spec: NamespaceSpec) -> float:
    return 1 / math.sqrt(spec.key_dim) if scale is None else check_positive("scale", scale)
