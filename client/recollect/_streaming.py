"""A streamed answer: its chunks, each copied once, into the arrays that the user gets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from recollect.errors import InternalError
from recollect.v1 import memory_pb2 as pb

STREAMED_FROM_BYTES = 1024 * 1024
"""A smaller answer is as fast in one message."""

# Keys of the wire: field number and kind.
_ARRAY = pb.SearchPart.ARRAY_FIELD_NUMBER << 3
_OFFSET = pb.SearchPart.OFFSET_FIELD_NUMBER << 3
_DATA = pb.SearchPart.DATA_FIELD_NUMBER << 3 | 2

Bytes = npt.NDArray[np.uint8]


class ChunkedAnswer:
    """Takes the parts of one streamed search.

    Args:
        open_arrays: Checks the first part, and gives the bytes of each array to write to.
        see_arrays: Checks an answer, and finds its arrays in shared memory; they may stay there, or not.
    """

    def __init__(
        self,
        open_arrays: Callable[[pb.SearchResponse], dict[int, Bytes]],
        see_arrays: Callable[[pb.SearchResponse, Bytes, bool], None],
    ) -> None:
        self._open = open_arrays
        self._see = see_arrays
        self._answer: pb.SearchResponse | None = None
        self._arrays: dict[int, Bytes] = {}
        self._filled: dict[int, int] = {}

    def take(self, raw: bytes) -> None:
        """Takes the next part as it came.

        Raises:
            InternalError: It is not what should come now.
        """
        if self._answer is None:
            self.take_first(_parsed(raw))
            return
        number, offset, chunk = _chunk(raw)
        if number not in self._arrays or offset != self._filled[number]:
            raise _bad_stream(f"bytes from {offset} of array {number}")
        end = offset + len(chunk)
        if end > self._arrays[number].size:
            raise _bad_stream(f"{end} bytes of array {number}")
        self._arrays[number][offset:end] = np.frombuffer(chunk, np.uint8)
        self._filled[number] = end

    def take_first(self, part: pb.SearchPart) -> None:
        """Takes the first part; it has all of the answer, or the shapes of what follows."""
        self._answer = part.answer
        if not part.answer.scores.data:
            self._arrays = self._open(part.answer)
            self._filled = dict.fromkeys(self._arrays, 0)

    def take_shared(self, answer: pb.SearchResponse, memory: Bytes, *, keep: bool) -> None:
        """Takes an answer whose arrays lie in memory that is shared with the server: all of it.

        Args:
            answer: Where they lie.
            memory: All of it.
            keep: Whether large arrays may stay there.

        Raises:
            InternalError: They do not.
        """
        self._answer = answer
        self._see(answer, memory, keep)

    def finish(self) -> pb.SearchResponse:
        """The first part's answer, once all bytes have come.

        Raises:
            InternalError: Some are missing.
        """
        missing = [number for number, array in self._arrays.items() if self._filled[number] < array.size]
        if self._answer is None or missing:
            raise _bad_stream(f"an end before all of arrays {missing}")
        return self._answer


def _parsed(raw: bytes) -> pb.SearchPart:
    try:
        return pb.SearchPart.FromString(raw)
    except DecodeError as malformed:
        raise _bad_stream("a part that is no message") from malformed


def _chunk(raw: bytes) -> tuple[int, int, memoryview]:
    """Array, offset and data of a part, which is viewed: to parse it as a message would copy it."""
    found = {_ARRAY: 0, _OFFSET: 0}
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        number, at = _varint(raw, at)
        if key == _DATA and at + number == len(raw):
            return found[_ARRAY], found[_OFFSET], memoryview(raw)[at:]
        if key not in found:
            break
        found[key] = number
    part = _parsed(raw)  # in another order, or with fields that came later
    return part.array, part.offset, memoryview(part.data)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    number = 0
    for index, byte in enumerate(raw[at : at + 10]):
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return number, at + index + 1
    raise _bad_stream("a part that is no message")


def _bad_stream(came: str) -> InternalError:
    return InternalError(
        f"The server's stream came with {came}. Are client and server of the same version?",
        reason="BAD_REPLY",
    )
