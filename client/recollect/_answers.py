"""The answers to the parts of a read, as one result in the likeness of the queries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Generic, cast

import numpy as np
import numpy.typing as npt

from recollect._bits import WIRE_DTYPES, Wire
from recollect._checks import Include
from recollect._results import DTYPE_NUMBERS, A, AttendResult, Dtype, NamespaceSpec, SearchResult
from recollect._splitting import Assembly, Part, RowSequences
from recollect._streaming import Bytes, ChunkedAnswer
from recollect._tensor import UserArray, check_header, read_floats, read_ids, unpack_ids
from recollect.v1 import memory_pb2 as pb


class SearchAnswer(Generic[A]):
    """Scores, ids, and what was included."""

    def __init__(
        self,
        parts: Sequence[Part],
        queries: UserArray[A],
        spec: NamespaceSpec,
        *,
        top_k: int,
        include: frozenset[Include],
    ) -> None:
        self._queries = queries
        self._dtype: Dtype = spec.dtype
        shape = (*queries.shape[:3], top_k)
        self._scores = Assembly(parts, shape, WIRE_DTYPES["float32"])
        self._ids = Assembly(parts, shape, np.dtype(np.int64))
        stored = WIRE_DTYPES[spec.dtype]
        self._keys = Assembly(parts, (*shape, spec.key_dim), stored) if "keys" in include else None
        self._values = Assembly(parts, (*shape, spec.value_dim), stored) if "values" in include else None
        self._sequences = RowSequences(parts, shape[0])
        self._wire_kinds = {
            pb.SEARCH_ARRAY_SCORES: (WIRE_DTYPES["float32"], pb.DTYPE_FLOAT32),
            pb.SEARCH_ARRAY_IDS: (np.dtype("<i4"), pb.DTYPE_INT32),
            pb.SEARCH_ARRAY_KEYS: (stored, DTYPE_NUMBERS[spec.dtype]),
            pb.SEARCH_ARRAY_VALUES: (stored, DTYPE_NUMBERS[spec.dtype]),
        }
        self._chunked: dict[int, dict[int, npt.NDArray[np.generic]]] = {}

    def collect(self, index: int) -> ChunkedAnswer:
        """Takes the answer to part `index` in chunks, before `accept`."""

        def open_arrays(reply: pb.SearchResponse) -> dict[int, Bytes]:
            opened: dict[int, npt.NDArray[np.generic]] = {}
            for what, number, whole, message in (
                ("scores", pb.SEARCH_ARRAY_SCORES, self._scores, reply.scores),
                ("ids", pb.SEARCH_ARRAY_IDS, self._ids, reply.ids.offsets),
                ("keys", pb.SEARCH_ARRAY_KEYS, self._keys, reply.keys),
                ("values", pb.SEARCH_ARRAY_VALUES, self._values, reply.values),
            ):
                if whole is not None:
                    dtype, kind = self._wire_kinds[number]
                    check_header(what, message, kind, whole.shape_of(index))
                    opened[number] = np.empty(whole.shape_of(index), dtype)
            self._chunked[index] = opened
            return {number: array.reshape(-1).view(np.uint8) for number, array in opened.items()}

        self._chunked.pop(index, None)  # of an attempt that failed
        return ChunkedAnswer(open_arrays, size_bytes=self._size_bytes(index))

    def _size_bytes(self, index: int) -> int:
        """Of all arrays of part `index`, as they travel."""
        arrays = (
            (pb.SEARCH_ARRAY_SCORES, self._scores),
            (pb.SEARCH_ARRAY_IDS, self._ids),
            (pb.SEARCH_ARRAY_KEYS, self._keys),
            (pb.SEARCH_ARRAY_VALUES, self._values),
        )
        return sum(
            math.prod(whole.shape_of(index)) * self._wire_kinds[number][0].itemsize
            for number, whole in arrays
            if whole is not None
        )

    def _accept_chunked(
        self, index: int, reply: pb.SearchResponse, arrays: dict[int, npt.NDArray[np.generic]]
    ) -> None:
        self._scores.put(index, cast("Wire", arrays[pb.SEARCH_ARRAY_SCORES]))
        offsets = cast("npt.NDArray[np.int32]", arrays[pb.SEARCH_ARRAY_IDS])
        self._ids.put(index, unpack_ids(offsets, reply.ids.first_ids))
        for number, whole in ((pb.SEARCH_ARRAY_KEYS, self._keys), (pb.SEARCH_ARRAY_VALUES, self._values)):
            if whole is not None:
                whole.put(index, cast("Wire", arrays[number]))
        self._sequences.put(index, reply.next_sequences)

    def accept(self, index: int, reply: pb.SearchResponse) -> None:
        """Takes the answer to part `index`."""
        chunked = self._chunked.pop(index, None)
        if chunked is not None:
            self._accept_chunked(index, reply, chunked)
            return
        scores, ids = self._scores, self._ids
        scores.put(index, read_floats("scores", reply.scores, "float32", scores.shape_of(index)))
        ids.put(index, read_ids(reply.ids, ids.shape_of(index)))
        for what, whole, message in (
            ("keys", self._keys, reply.keys),
            ("values", self._values, reply.values),
        ):
            if whole is not None:
                whole.put(index, read_floats(what, message, self._dtype, whole.shape_of(index)))
        self._sequences.put(index, reply.next_sequences)

    def finish(self) -> SearchResult[A]:
        """The result of the whole call."""
        give, dtype = self._queries, self._dtype
        return SearchResult(
            scores=give.give_exact(self._scores.whole),
            ids=give.give_exact(self._ids.whole),
            keys=None if self._keys is None else give.give_floats(self._keys.whole, dtype),
            values=None if self._values is None else give.give_floats(self._values.whole, dtype),
            next_sequences=self._sequences.latest,
        )


class AttendAnswer(Generic[A]):
    """Output, LSE, and ids if asked for; `shape` is [B, Hq, T] of the whole call."""

    def __init__(
        self,
        parts: Sequence[Part],
        queries: UserArray[A],
        spec: NamespaceSpec,
        *,
        shape: tuple[int, ...],
        top_k: int,
        with_ids: bool,
    ) -> None:
        self._queries = queries
        self._dtype: Dtype = spec.dtype
        self._output = Assembly(parts, (*shape, spec.value_dim), WIRE_DTYPES[spec.dtype])
        self._lse = Assembly(parts, shape, WIRE_DTYPES["float32"])
        self._ids = Assembly(parts, (*shape, top_k), np.dtype(np.int64)) if with_ids else None
        self._sequences = RowSequences(parts, shape[0])

    def accept(self, index: int, reply: pb.AttendResponse) -> None:
        """Takes the answer to part `index`."""
        output, lse, ids = self._output, self._lse, self._ids
        output.put(index, read_floats("output", reply.output, self._dtype, output.shape_of(index)))
        lse.put(index, read_floats("lse", reply.lse, "float32", lse.shape_of(index)))
        if ids is not None:
            ids.put(index, read_ids(reply.ids, ids.shape_of(index)))
        self._sequences.put(index, reply.next_sequences)

    def finish(self) -> AttendResult[A]:
        """The result of the whole call."""
        return AttendResult(
            output=self._queries.give_floats(self._output.whole, self._dtype),
            lse=self._queries.give_exact(self._lse.whole),
            ids=None if self._ids is None else self._queries.give_exact(self._ids.whole),
            next_sequences=self._sequences.latest,
        )
