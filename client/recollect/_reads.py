"""Search and the gradient of attend as work: what is sent, how it is split, what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, cast, get_args

import numpy as np
import numpy.typing as npt

from recollect._answers import SearchAnswer
from recollect._bits import WIRE_DTYPES, Ids, Wire
from recollect._checks import (
    Include,
    check_choice,
    check_ints,
    check_layer,
    check_limit,
    check_names,
    check_positive,
    check_queries,
    check_rank,
    check_shape,
    check_top_k,
)
from recollect._int8 import Rows, to_rows
from recollect._regions import Region
from recollect._results import (
    DTYPE_NUMBERS,
    A,
    Array,
    Dtype,
    Limits,
    NamespaceSpec,
    QueryDtype,
    SearchResult,
)
from recollect._rounding import STEP_BYTES
from recollect._splitting import Assembly, Part, TokenBytes, split_grid
from recollect._streaming import STREAMED_FROM_BYTES
from recollect._tensor import (
    UserArray,
    floats_message,
    gradient_exponents,
    ids_message,
    read_floats,
    user_array,
)
from recollect._work import ATTEND_BACKWARD, SEARCH, SEARCH_STREAM, Work
from recollect.v1 import memory_pb2 as pb

SCALAR_BYTES = 4
"""Of a score, an LSE, or an id's offset."""


@dataclass(frozen=True, slots=True)
class Queries(Generic[A]):
    """What all reads have: checked, and not yet converted."""

    namespace: str
    spec: NamespaceSpec
    layer: int
    array: UserArray[A]
    streams: list[str]
    min_sequences: list[int]
    query_dtype: QueryDtype | None = None

    @property
    def itemsize(self) -> int:
        return WIRE_DTYPES[self.spec.dtype].itemsize

    @property
    def query_bytes(self) -> int:
        """Of one query as it travels."""
        dim = self.spec.key_dim
        return dim * self.itemsize if self.query_dtype is None else dim + STEP_BYTES

    def to_wire(self) -> Wire | Rows:
        """The queries as they travel, [B, Hq, T, Dk] or rows of integers."""
        if self.query_dtype is None:
            return self.array.to_wire(self.spec.dtype)
        return to_rows("queries", cast("npt.NDArray[np.float32]", self.array.to_wire("float32")))

    def header(self, wire: Wire | Rows) -> pb.Tensor:
        """The message of some of them, without their data."""
        if self.query_dtype is None:
            return pb.Tensor(dtype=DTYPE_NUMBERS[self.spec.dtype], shape=wire.shape)
        return pb.Tensor(dtype=pb.DTYPE_INT8, shape=(*wire.shape[:-1], self.spec.key_dim))

    def message(self, wire: Wire | Rows) -> pb.Tensor:
        """The message of some of them: one copy."""
        message = self.header(wire)
        message.data = wire.tobytes()
        return message

    def split(
        self, weight: TokenBytes, limits: Limits, hint: str, *, down_bytes_max: int | None = None
    ) -> list[Part]:
        return split_grid(
            len(self.streams),
            self.array.shape[2],
            weight,
            names=self.streams,
            namespace=self.namespace,
            limits=limits,
            hint=hint,
            down_bytes_max=down_bytes_max,
        )


def check_read(
    namespace: str,
    spec: NamespaceSpec,
    layer: int,
    queries: A,
    *,
    streams: Sequence[str],
    min_sequences: Sequence[int] | None = None,
    query_dtype: QueryDtype | None = None,
) -> Queries[A]:
    """Checks what all reads have."""
    if query_dtype is not None:
        check_choice("query_dtype", query_dtype, get_args(QueryDtype))
    array = user_array("queries", queries)
    check_queries(array.shape, spec)
    rows = array.shape[0]
    return Queries(
        namespace,
        spec,
        check_layer("layer", layer, spec),
        array,
        check_names("streams", streams, count=rows),
        check_ints("min_sequences", min_sequences, rows, minimum=0),
        query_dtype,
    )


def prepare_search(
    read: Queries[A], *, top_k: int, include: frozenset[Include], missing_ok: bool, exact: bool
) -> Callable[[Limits], Work[pb.SearchResponse, SearchResult[A]]]:
    """Converts now; splits when the limits are known."""
    spec = read.spec
    top_k = check_top_k(top_k)
    wire = read.to_wire()
    rows, heads, tokens, _ = read.array.shape
    request_of = partial(
        _search_request, read=read, top_k=top_k, include=include, missing_ok=missing_ok, exact=exact
    )

    def split(limits: Limits) -> Work[pb.SearchResponse, SearchResult[A]]:
        check_limit("top_k", top_k, limits.top_k_max)
        fetched = ("keys" in include) * spec.key_dim + ("values" in include) * spec.value_dim
        weight = TokenBytes(
            up=heads * read.query_bytes,
            down=heads * top_k * (2 * SCALAR_BYTES + fetched * read.itemsize),
        )
        # Each part of a split read searches anew.
        streamed = bool(fetched) and limits.stream_bytes_max > 0
        streamed = streamed and rows * tokens * weight.down > STREAMED_FROM_BYTES
        parts = read.split(
            weight,
            limits,
            "Lower top_k, include less, or use attend",
            down_bytes_max=limits.stream_bytes_max if streamed else None,
        )
        answer = SearchAnswer(
            parts,
            read.array,
            spec,
            top_k=top_k,
            include=include,
            shared_bytes_max=limits.stream_bytes_max,
        )

        def ask(index: int) -> _Question[A]:
            part = parts[index]
            queries = wire[part.rows, :, part.tokens]
            request, size_bytes = request_of(part.rows), answer.shared_bytes(index)
            return _Question(request, read, queries, size_bytes, answer.shared_dtype)

        return Work(
            method=SEARCH_STREAM if streamed else SEARCH,
            reply_type=pb.SearchResponse,
            retry_safe=True,
            concurrent=not streamed,  # the server holds a stream's answer until it is here
            count=len(parts),
            build=lambda index: ask(index).whole(),
            accept=answer.accept,
            finish=answer.finish,
            collect=answer.collect if streamed else None,
            upload=ask if streamed else None,
        )

    return split


def _search_request(
    rows: slice, *, read: Queries[A], top_k: int, include: frozenset[Include], missing_ok: bool, exact: bool
) -> pb.SearchRequest:
    """For some rows, without their queries."""
    return pb.SearchRequest(
        namespace=read.namespace,
        layer=read.layer,
        streams=read.streams[rows],
        min_sequences=read.min_sequences[rows],
        top_k=top_k,
        include_keys="keys" in include,
        include_values="values" in include,
        missing_ok=missing_ok,
        exact=exact,
    )


class _Question(Generic[A]):
    """A search: its queries in its message, or where it is answered."""

    def __init__(
        self,
        request: pb.SearchRequest,
        read: Queries[A],
        queries: Wire | Rows,
        answer_bytes: int,
        answer_dtype: Dtype,
    ) -> None:
        self._request = request
        self._read = read
        self._queries = queries
        self._answer_dtype: Dtype = answer_dtype
        self.size_bytes = max(answer_bytes, queries.nbytes)

    def whole(self) -> pb.SearchRequest:
        """All in the message."""
        request = pb.SearchRequest(queries=self._read.message(self._queries))
        request.MergeFrom(self._request)
        return request

    def beside(self, region: Region) -> pb.SearchRequest:
        """Queries in a region, where they are read before the answer takes their place."""
        (offset,) = region.put([self._queries])
        header = self._read.header(self._queries)
        header.offset = offset
        request = pb.SearchRequest(
            queries=header,
            pairs_dtype=DTYPE_NUMBERS[self._answer_dtype],
            region=region.id,
        )
        request.MergeFrom(self._request)
        return request


@dataclass(frozen=True, slots=True)
class _Gradients:
    """What comes from upstream, on its way to the server."""

    ids: Ids
    output: Wire
    lse: Wire | None
    exponents: npt.NDArray[np.int32] | None

    def token_bytes(self) -> int:
        """Of one token, all heads."""
        _, heads, _, top_k = self.ids.shape
        output_bytes = int(self.output.shape[3]) * int(self.output.dtype.itemsize)
        lse_bytes = 0 if self.lse is None else SCALAR_BYTES
        return int(heads) * (int(top_k) * SCALAR_BYTES + output_bytes + lse_bytes)


def _convert_gradients(
    read: Queries[A], ids: Array, grad_output: Array, grad_lse: Array | None
) -> _Gradients:
    shape, dtype = read.array.shape[:3], read.spec.dtype
    user_ids, user_output = user_array("ids", ids), user_array("grad_output", grad_output)
    user_lse = None if grad_lse is None else user_array("grad_lse", grad_lse)
    check_rank("ids", user_ids.shape, f"[{shape[0]}, {shape[1]}, {shape[2]}, K]")
    check_shape("ids", user_ids.shape, (*shape, user_ids.shape[3]), ", to go with queries")
    check_shape("grad_output", user_output.shape, (*shape, read.spec.value_dim), ", to go with queries")
    if user_lse is not None:
        check_shape("grad_lse", user_lse.shape, shape, ", to go with queries")
    # Gradients are often too small for float16; the other formats have the range.
    exponents = gradient_exponents(user_output, user_lse) if dtype == "float16" else None
    lse = None if user_lse is None else user_lse.to_wire("float32")
    if lse is not None and exponents is not None:
        lse = np.ldexp(lse, -exponents)
    return _Gradients(user_ids.to_ids(), user_output.to_wire(dtype, exponents), lse, exponents)


def prepare_attend_backward(
    read: Queries[A], *, ids: Array, grad_output: Array, grad_lse: Array | None, scale: float | None
) -> Callable[[Limits], Work[pb.AttendBackwardResponse, A]]:
    """Converts now; splits when the limits are known."""
    array, dtype = read.array, read.spec.dtype
    factor = check_scale(scale, read.spec)
    wire = array.to_wire(dtype)
    gradients = _convert_gradients(read, ids, grad_output, grad_lse)
    queries_bytes = array.shape[1] * array.shape[3] * read.itemsize

    def split(limits: Limits) -> Work[pb.AttendBackwardResponse, A]:
        check_limit("top_k", gradients.ids.shape[3], limits.top_k_max)
        weight = TokenBytes(up=queries_bytes + gradients.token_bytes(), down=queries_bytes)
        parts = read.split(weight, limits, "Lower top_k, or use fewer or smaller heads")
        whole = Assembly(parts, array.shape, WIRE_DTYPES[dtype])

        def build(index: int) -> pb.AttendBackwardRequest:
            rows, tokens = parts[index].rows, parts[index].tokens
            lse = gradients.lse
            return pb.AttendBackwardRequest(
                namespace=read.namespace,
                layer=read.layer,
                streams=read.streams[rows],
                queries=floats_message(wire[rows, :, tokens], dtype),
                ids=ids_message(gradients.ids[rows, :, tokens]),
                scale=factor,
                grad_output=floats_message(gradients.output[rows, :, tokens], dtype),
                grad_lse=None if lse is None else floats_message(lse[rows, :, tokens], "float32"),
            )

        def accept(index: int, reply: pb.AttendBackwardResponse) -> None:
            whole.put(index, read_floats("grad_queries", reply.grad_queries, dtype, whole.shape_of(index)))

        def finish() -> A:
            return array.give_floats(whole.whole, dtype, gradients.exponents)

        return Work(ATTEND_BACKWARD, pb.AttendBackwardResponse, True, True, len(parts), build, accept, finish)

    return split


def check_scale(scale: float | None, spec: NamespaceSpec) -> float:
    """By what scores are multiplied; None: the usual."""
    return 1 / math.sqrt(spec.key_dim) if scale is None else check_positive("scale", scale)
