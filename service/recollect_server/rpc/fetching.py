"""Keys and values on their way from the device's thread to who sends them. No transport."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from recollect.v1 import memory_pb2 as pb
from recollect_server.application.commands import Coming, Found
from recollect_server.domain.arrays import RAW_TYPES, Raw
from recollect_server.rpc.fresh_bytes import fresh_bytes

ARRAY_TAG = pb.SearchPart.ARRAY_FIELD_NUMBER << 3
OFFSET_TAG = pb.SearchPart.OFFSET_FIELD_NUMBER << 3
DATA_TAG = pb.SearchPart.DATA_FIELD_NUMBER << 3 | 2
"""Before the fields of `SearchPart` on the wire."""

OFFSET_BYTES, LENGTH_BYTES = 8, 4
"""Of numbers, whatever they are: the header is 16 bytes long, and elements behind it begin where they may."""

Array: TypeAlias = pb.SearchArray.ValueType

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Begun:
    """A search that has found all but keys and values."""

    found: Found
    keys: Coming | None
    values: Coming | None

    @property
    def coming(self) -> dict[Array, Coming]:
        """What is to come, in that order."""
        both = {pb.SEARCH_ARRAY_KEYS: self.keys, pb.SEARCH_ARRAY_VALUES: self.values}
        return {number: pairs for number, pairs in both.items() if pairs is not None}


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some bytes of an array, as a serialized `SearchPart` whose data begin at `data_at`."""

    array: Array
    part: bytes
    data_at: int

    @classmethod
    def of(cls, array: Array, offset: int, elements: npt.NDArray[np.generic]) -> Chunk:
        """Elements from byte `offset` on: copied once. As a message they would be copied twice more."""
        data = little_endian(elements).view(np.uint8).data
        header = _header(array, offset, len(data))
        return cls(array, b"".join((header, data)), len(header))

    @classmethod
    def to_fill(cls, array: Array, offset: int, size: int) -> tuple[Chunk, npt.NDArray[np.uint8]]:
        """One of so many bytes from byte `offset` on, and where to write them before it is sent."""
        header = _header(array, offset, size)
        part, memory = fresh_bytes(len(header) + size)
        memory[: len(header)] = np.frombuffer(header, np.uint8)
        return cls(array, part, len(header)), memory[len(header) :]

    @property
    def data(self) -> memoryview:
        """The bytes of the array."""
        return memoryview(self.part)[self.data_at :]


class Fetching:
    """What is fetched while that before it is sent. Implements `commands.Progress`.

    Made in the event loop of who sends it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[Begun] = self._loop.create_future()
        self._missing: list[tuple[Array, Coming]] = []  # the last one is being fetched
        self._offset = 0
        self._filling: tuple[Chunk, npt.NDArray[np.uint8]] | None = None
        self._chunks: deque[Chunk] = deque()
        self._wanted: asyncio.Future[None] | None = None

    def begin(self, found: Found, *, keys: Coming | None, values: Coming | None) -> None:
        """See `Progress`."""
        begun = Begun(found, keys, values)
        self._missing = list(begun.coming.items())[::-1]
        self._tell(self._begun, begun)

    def room(self, size: int) -> Raw:
        """See `Progress`."""
        array, coming = self._missing[-1]
        of: np.dtype[np.float32 | np.float16 | np.uint16] = np.dtype(RAW_TYPES[coming.dtype])
        self._filling = Chunk.to_fill(array, self._offset, size * of.itemsize)
        return self._filling[1].view(of)

    def fetched(self, size: int) -> None:
        """See `Progress`."""
        assert self._filling is not None
        (array, coming), (chunk, memory) = self._missing[-1], self._filling
        self._filling = None
        size_bytes = size * coming.dtype.itemsize_bytes
        elements = memory[:size_bytes].view(RAW_TYPES[coming.dtype])
        if size_bytes < memory.size:  # its header tells of more
            chunk = Chunk.of(array, self._offset, elements)
        else:
            elements.view(elements.dtype.newbyteorder("<"))[...] = elements
        self._chunks.append(chunk)
        self._offset += size_bytes
        if self._offset == coming.size_bytes:
            self._missing.pop()
            self._offset = 0
        wanted = self._wanted  # set before its owner looks for chunks: one of the two sees what the other did
        if wanted is not None:
            self._tell(wanted, None)

    def _tell(self, future: asyncio.Future[Value], value: Value) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(_settle, future, value)

    async def begun(self, search: asyncio.Task[Found]) -> Begun:
        """What a search has found before it fetches anything. Who does not wait for it gives the search up.

        Raises:
            RecollectError: The search's.
        """
        try:
            await asyncio.wait((search, self._begun), return_when=asyncio.FIRST_COMPLETED)
            if not self._begun.done():
                await search  # raises, or it has begun, and that is on its way here
        except asyncio.CancelledError:
            search.cancel()
            raise
        finally:
            del search  # what it raises holds this frame, and with it the whole message
        return await self._begun

    async def chunks(self, search: asyncio.Task[Found]) -> AsyncGenerator[Chunk, None]:
        """What a search fetches, as it comes.

        Raises:
            RecollectError: The search's.
        """
        while True:
            is_over = search.done()
            while self._chunks:
                yield self._chunks.popleft()
            if is_over:
                try:
                    await search
                    return
                finally:
                    del search  # as above
            self._wanted = self._loop.create_future()
            if not self._chunks:
                await asyncio.wait((search, self._wanted), return_when=asyncio.FIRST_COMPLETED)
            self._wanted = None


def little_endian(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Contiguous, and in the order of bytes that travels; a view where it is so already."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<"))


def _settle(future: asyncio.Future[Value], value: Value) -> None:
    if not future.done():
        future.set_result(value)


def _header(array: Array, offset: int, size: int) -> bytes:
    """What comes before `size` bytes of data; it is as long whatever the numbers are."""
    fields = bytes((ARRAY_TAG, array, OFFSET_TAG)), _varint(offset, OFFSET_BYTES)
    return b"".join((*fields, bytes((DATA_TAG,)), _varint(size, LENGTH_BYTES)))


def _varint(number: int, length: int) -> bytes:
    """In so many bytes, of 7 bits each, where fewer might do."""
    more = (number >> 7 * place & 0x7F | 0x80 for place in range(length - 1))
    return bytes((*more, number >> 7 * (length - 1)))
