"""Large answers to a search: in parts, or in a region of shared memory. No transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator

import numpy as np
import numpy.typing as npt

from recollect.v1 import memory_pb2 as pb
from recollect_server.application.commands import Found
from recollect_server.application.pairs import PART_BYTES
from recollect_server.domain.arrays import Room
from recollect_server.rpc import tensors
from recollect_server.rpc.fetching import Array, Begun, Chunk, Fetching, little_endian

CHUNK_BYTES = PART_BYTES
"""Of an array in one part: what gRPC carries fastest (measured). Up to as much, an answer is one part."""


class SearchStream:
    """What a search finds, as parts.

    Args:
        begun: All but keys and values.
        fetching: Gets these.
        search: Is over when it has got all of them.
    """

    def __init__(self, begun: Begun, fetching: Fetching, search: asyncio.Task[Found]) -> None:
        self._begun = begun
        self._fetching, self._search = fetching, search
        self._ids = tensors.packed_ids(begun.found.ids)

    async def whole(self) -> pb.SearchPart:
        """All of it in one part. Who does not wait for it gives the search up.

        Raises:
            RecollectError: The search's.
        """
        try:
            return await self._whole()
        finally:
            self._end()

    async def _whole(self) -> pb.SearchPart:
        part, tensor_of = self._header()
        for number, array in self._found():
            tensor_of[number].data = little_endian(array).tobytes()
        data: dict[Array, list[memoryview]] = {}
        async for chunk in self._fetching.chunks(self._search):
            data.setdefault(chunk.array, []).append(chunk.data)
        for number, pieces in data.items():
            tensor_of[number].data = b"".join(pieces)
        return part

    async def parts(self) -> AsyncGenerator[bytes, None]:
        """All of it in serialized parts, as it comes. Who closes it gives the search up.

        Raises:
            RecollectError: The search's.
        """
        try:
            if self._size_bytes() <= CHUNK_BYTES:
                yield (await self._whole()).SerializeToString()
                return
            part, _ = self._header()
            yield part.SerializeToString()
            for number, array in self._found():
                elements, size = array.reshape(-1), CHUNK_BYTES // array.itemsize
                for first in range(0, elements.size, size):
                    yield Chunk.of(number, first * array.itemsize, elements[first : first + size]).part
            async for chunk in self._fetching.chunks(self._search):
                yield chunk.part
        finally:
            self._end()

    def _end(self) -> None:
        self._search.cancel()
        del self._search  # what it raises holds this frame

    def _found(self) -> Iterator[tuple[Array, npt.NDArray[np.generic]]]:
        yield pb.SEARCH_ARRAY_SCORES, self._begun.found.scores
        yield pb.SEARCH_ARRAY_IDS, self._ids.offsets

    def _size_bytes(self) -> int:
        coming = sum(each.size_bytes for each in self._begun.coming.values())
        return coming + sum(array.nbytes for _, array in self._found())

    def _header(self) -> tuple[pb.SearchPart, dict[Array, pb.Tensor]]:
        """The answer without data, and the tensors of it."""
        part = pb.SearchPart()
        answer, found = part.answer, self._begun.found
        answer.next_sequences.extend(found.next_sequences)
        answer.ids.first_ids.extend(self._ids.first_ids)
        shapes = {
            pb.SEARCH_ARRAY_SCORES: (answer.scores, pb.DTYPE_FLOAT32, found.scores.shape),
            pb.SEARCH_ARRAY_IDS: (answer.ids.offsets, pb.DTYPE_INT32, found.ids.shape),
        }
        places = {pb.SEARCH_ARRAY_KEYS: answer.keys, pb.SEARCH_ARRAY_VALUES: answer.values}
        for number, coming in self._begun.coming.items():
            shapes[number] = (places[number], tensors.WIRE_DTYPES[coming.dtype], coming.shape)
        for tensor, dtype, shape in shapes.values():
            tensor.dtype = dtype
            tensor.shape.extend(shape)
        return part, {number: tensor for number, (tensor, _, _) in shapes.items()}


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
