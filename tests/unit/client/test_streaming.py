"""Parts of a streamed answer, right and wrong."""

from __future__ import annotations

import numpy as np
import pytest

from recollect._streaming import Bytes, ChunkedAnswer
from recollect.errors import InternalError
from recollect.v1 import memory_pb2 as pb

FIRST = pb.SearchPart(answer=pb.SearchResponse(next_sequences=[7])).SerializeToString()


def part(offset: int, data: bytes, array: pb.SearchArray.ValueType = pb.SEARCH_ARRAY_KEYS) -> bytes:
    """A chunk as a message."""
    return pb.SearchPart(array=array, offset=offset, data=data).SerializeToString()


def opened(size: int = 300) -> tuple[ChunkedAnswer, Bytes]:
    """An answer with `size` bytes of keys, and where they go."""
    target = np.zeros(size, np.uint8)
    return ChunkedAnswer(lambda _: {pb.SEARCH_ARRAY_KEYS: target}, no_region), target


def no_region(answer: pb.SearchResponse, memory: Bytes, keep: bool) -> None:
    """Nothing of these answers is in shared memory."""
    raise AssertionError


def test_chunks_fill_the_array() -> None:
    """Bytes are lost or at the wrong place, or the answer's other fields are gone."""
    answer, target = opened()
    data = bytes(range(150)) * 2
    for raw in (FIRST, part(0, data[:130]), part(130, data[130:])):
        answer.take(raw)
    assert list(answer.finish().next_sequences) == [7]
    assert target.tobytes() == data


def test_fields_in_another_order_are_read() -> None:
    """A server of another language writes a part's fields in another order, and its chunks are garbage."""
    answer, target = opened(3)
    answer.take(FIRST)
    data = pb.SearchPart(data=b"abc").SerializeToString()
    answer.take(data + pb.SearchPart(array=pb.SEARCH_ARRAY_KEYS).SerializeToString())
    answer.finish()
    assert target.tobytes() == b"abc"


@pytest.mark.parametrize(
    "bad",
    [
        part(1, b"x"),
        part(0, b"x" * 301),
        part(0, b"x", pb.SEARCH_ARRAY_VALUES),
        part(0, b"x" * 200)[:-1],
        b"\xff" * 12,
    ],
    ids=["a gap", "too much", "nobody asked", "cut off", "garbage"],
)
def test_a_wrong_part_is_an_error(bad: bytes) -> None:
    """A broken server has the client write beyond an array, or return what never came."""
    answer, _ = opened()
    answer.take(FIRST)
    with pytest.raises(InternalError) as raised:
        answer.take(bad)
    assert raised.value.reason == "BAD_REPLY"


@pytest.mark.parametrize("parts", [[], [FIRST], [FIRST, part(0, b"x" * 299)]])
def test_an_early_end_is_an_error(parts: list[bytes]) -> None:
    """A stream that ended early gives an array whose rest is whatever was in memory."""
    answer, _ = opened()
    for raw in parts:
        answer.take(raw)
    with pytest.raises(InternalError, match="end before"):
        answer.finish()
