"""The answers to the parts of a read, as one result in the likeness of the queries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Generic, cast

import numpy as np
import numpy.typing as npt

from recollect._bits import WIRE_DTYPES, Wire
from recollect._checks import Include
from recollect._recycling import RESULTS
from recollect._results import DTYPE_NUMBERS, A, AttendResult, Dtype, NamespaceSpec, SearchResult
from recollect._splitting import Assembly, Part, RowSequences
from recollect._streaming import Bytes, ChunkedAnswer
from recollect._tensor import UserArray, array_at, check_header, read_floats, read_ids, unpack_ids
from recollect.v1 import memory_pb2 as pb

PAIRS = (pb.SEARCH_ARRAY_KEYS, pb.SEARCH_ARRAY_VALUES)


class SearchAnswer(Generic[A]):
    """Scores, ids, and what was included.

    Of one part in shared memory, keys and values come in the queries' float32: the server widens them. Unless
    that is more than `shared_bytes_max`.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        queries: UserArray[A],
        spec: NamespaceSpec,
        *,
        top_k: int,
        include: frozenset[Include],
        shared_bytes_max: int,
    ) -> None:
        self._queries = queries
        self._dtype: Dtype = spec.dtype  # of keys and values, as they came
        shape = (*queries.shape[:3], top_k)
        self._scores = Assembly(parts, shape, WIRE_DTYPES["float32"])
        self._ids = Assembly(parts, shape, np.dtype(np.int64))
        stored = WIRE_DTYPES[self._dtype]
        self._keys = Assembly(parts, (*shape, spec.key_dim), stored) if "keys" in include else None
        self._values = Assembly(parts, (*shape, spec.value_dim), stored) if "values" in include else None
        self._sequences = RowSequences(parts, shape[0])
        self._chunked: dict[int, dict[int, npt.NDArray[np.generic]]] = {}
        is_widened = len(parts) == 1 and queries.is_widened(spec.dtype)
        fits = is_widened and self._bytes(0, "float32") <= shared_bytes_max
        self.shared_dtype: Dtype = "float32" if fits else spec.dtype

    def collect(self, index: int) -> ChunkedAnswer:
        """Takes the answer to part `index` in chunks, before `accept`."""

        def open_arrays(reply: pb.SearchResponse) -> dict[int, Bytes]:
            opened = self._chunked[index] = {
                number: RESULTS.empty(shape, dtype)
                for number, _, shape, dtype in self._checked_arrays(index, reply, self._dtype)
            }
            return {number: array.reshape(-1).view(np.uint8) for number, array in opened.items()}

        def see_arrays(reply: pb.SearchResponse, memory: Bytes, keep: bool) -> None:
            seen = {
                number: array_at(message.offset, shape, dtype, memory=memory)
                for number, message, shape, dtype in self._checked_arrays(index, reply, self.shared_dtype)
            }
            self._dtype = self.shared_dtype
            # Scores are small: who has only these is not to have all of the region.
            self._chunked[index] = {
                number: array if keep and number in PAIRS else array.copy() for number, array in seen.items()
            }

        self._chunked.pop(index, None)  # of an attempt that failed
        return ChunkedAnswer(open_arrays, see_arrays)

    def _checked_arrays(
        self, index: int, reply: pb.SearchResponse, pairs_dtype: Dtype
    ) -> Iterator[tuple[int, pb.Tensor, tuple[int, ...], np.dtype[np.generic]]]:
        """The arrays of the answer to part `index`: number, header, shape and dtype.

        Raises:
            InternalError: One is not what the question implies.
        """
        messages = {
            pb.SEARCH_ARRAY_SCORES: ("scores", reply.scores),
            pb.SEARCH_ARRAY_IDS: ("ids", reply.ids.offsets),
            pb.SEARCH_ARRAY_KEYS: ("keys", reply.keys),
            pb.SEARCH_ARRAY_VALUES: ("values", reply.values),
        }
        for number, shape, dtype, kind in self._arrays(index, pairs_dtype):
            what, message = messages[number]
            check_header(what, message, kind, shape)
            yield number, message, shape, dtype

    def _arrays(
        self, index: int, pairs_dtype: Dtype
    ) -> Iterator[tuple[pb.SearchArray.ValueType, tuple[int, ...], np.dtype[np.generic], pb.DType.ValueType]]:
        """Those that part `index` is answered with: number, shape, and dtype here and on the wire."""
        pairs = WIRE_DTYPES[pairs_dtype], DTYPE_NUMBERS[pairs_dtype]
        yield pb.SEARCH_ARRAY_SCORES, self._scores.shape_of(index), np.dtype("<f4"), pb.DTYPE_FLOAT32
        yield pb.SEARCH_ARRAY_IDS, self._ids.shape_of(index), np.dtype("<i4"), pb.DTYPE_INT32
        if self._keys is not None:
            yield pb.SEARCH_ARRAY_KEYS, self._keys.shape_of(index), *pairs
        if self._values is not None:
            yield pb.SEARCH_ARRAY_VALUES, self._values.shape_of(index), *pairs

    def shared_bytes(self, index: int) -> int:
        """Of the answer to part `index`, if it comes in shared memory."""
        return self._bytes(index, self.shared_dtype)

    def _bytes(self, index: int, pairs_dtype: Dtype) -> int:
        arrays = self._arrays(index, pairs_dtype)
        return sum(math.prod(shape) * dtype.itemsize for _, shape, dtype, _ in arrays)

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
