"""Large answers to a search: in parts, or in a region of shared memory. No transport."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from recollect.v1 import memory_pb2 as pb
from recollect_server.application.commands import Found
from recollect_server.domain.arrays import Room
from recollect_server.rpc import tensors

CHUNK_BYTES = 1024 * 1024
"""Of an array in one part: what gRPC carries fastest. Up to as much, an answer is one part."""

DATA_TAG = pb.SearchPart.DATA_FIELD_NUMBER << 3 | 2
"""Before the length of `SearchPart.data` on the wire."""


class SearchStream:
    """What a search found, as parts.

    Args:
        found: The answer. Its keys and values are viewed, not copied, and held as long as this is.
    """

    def __init__(self, found: Found) -> None:
        self._next_sequences = found.next_sequences
        self._ids = tensors.packed_ids(found.ids)
        arrays: dict[pb.SearchArray.ValueType, tuple[npt.NDArray[np.generic], pb.DType.ValueType]] = {
            pb.SEARCH_ARRAY_SCORES: (found.scores, pb.DTYPE_FLOAT32),
            pb.SEARCH_ARRAY_IDS: (self._ids.offsets, pb.DTYPE_INT32),
        }
        for number, pairs in ((pb.SEARCH_ARRAY_KEYS, found.keys), (pb.SEARCH_ARRAY_VALUES, found.values)):
            if pairs is not None:
                arrays[number] = (pairs.raw, tensors.WIRE_DTYPES[pairs.dtype])
        self._arrays = {
            number: (np.ascontiguousarray(array, array.dtype.newbyteorder("<")), dtype)
            for number, (array, dtype) in arrays.items()
        }

    def whole(self) -> pb.SearchPart:
        """All of it in one part."""
        return self._first(with_data=True)

    def parts(self) -> Iterator[bytes]:
        """All of it in serialized parts, each made when it is asked for."""
        if sum(array.nbytes for array, _ in self._arrays.values()) <= CHUNK_BYTES:
            yield self.whole().SerializeToString()
            return
        yield self._first(with_data=False).SerializeToString()
        for number, (array, _) in self._arrays.items():
            data = array.reshape(-1).view(np.uint8).data
            for offset in range(0, len(data), CHUNK_BYTES):
                chunk = data[offset : offset + CHUNK_BYTES]
                # A chunk put into a message and serialized would be copied twice more.
                envelope = pb.SearchPart(array=number, offset=offset).SerializeToString()
                yield b"".join((envelope, bytes((DATA_TAG,)), _varint(len(chunk)), chunk))

    def _first(self, *, with_data: bool) -> pb.SearchPart:
        part = pb.SearchPart()
        answer = part.answer
        answer.next_sequences.extend(self._next_sequences)
        answer.ids.first_ids.extend(self._ids.first_ids)
        places = {
            pb.SEARCH_ARRAY_SCORES: answer.scores,
            pb.SEARCH_ARRAY_IDS: answer.ids.offsets,
            pb.SEARCH_ARRAY_KEYS: answer.keys,
            pb.SEARCH_ARRAY_VALUES: answer.values,
        }
        for number, (array, dtype) in self._arrays.items():
            tensor = places[number]
            tensor.dtype = dtype
            tensor.shape.extend(array.shape)
            if with_data:
                tensor.data = array.tobytes()
        return part


def answer_in(room: Room, found: Found) -> pb.SearchResponse:
    """What a search found, with all its arrays in a region."""
    ids = tensors.packed_ids(found.ids)
    keys, values = (
        None if pairs is None else tensors.in_room(pairs.raw, tensors.WIRE_DTYPES[pairs.dtype], room)
        for pairs in (found.keys, found.values)
    )
    return pb.SearchResponse(
        scores=tensors.in_room(found.scores, pb.DTYPE_FLOAT32, room),
        ids=pb.EntryIds(offsets=tensors.in_room(ids.offsets, pb.DTYPE_INT32, room), first_ids=ids.first_ids),
        keys=keys,
        values=values,
        next_sequences=found.next_sequences,
    )


def _varint(number: int) -> bytes:
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
