"""Counting the parts of a message before it is parsed: never against a valid one, whatever else is sent."""

from __future__ import annotations

import random

import numpy as np
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.v1 import memory_pb2 as pb
from recollect_server.domain.errors import InvalidArgumentError
from recollect_server.domain.limits import Limits
from recollect_server.rpc.parts import FIELDS_BESIDE, FIELDS_OF_A_ROW, check_parts
from tests.contract import messages
from tests.property.mutations import Mutator
from tests.property.test_malformed_messages import METHOD_NAMES, valid

LIMITS = Limits()
FIELDS_MAX = FIELDS_OF_A_ROW * (LIMITS.rows_max + LIMITS.layers_max) + FIELDS_BESIDE


def largest() -> list[Message]:
    """Valid messages of as many parts as there may be."""
    names = [f"{row:0128d}" for row in range(LIMITS.rows_max)]
    numbers = [2**62] * LIMITS.rows_max
    backward = messages.attend_backward("n", pb.EntryIds(first_ids=numbers))
    backward.streams[:] = names
    add = messages.add("n")
    add.streams[:], add.lengths[:] = names, numbers
    evict = pb.EvictRequest(namespace="n", streams=names, layers=range(LIMITS.layers_max))
    evict.ids.ids.extend(np.full(LIMITS.ids_max, 2**62).tolist())
    create = messages.create("n")
    create.spec.layers[:] = range(LIMITS.layers_max)
    return [backward, add, evict, create, pb.GetStatsRequest(namespace="n", streams=names)]


@pytest.mark.parametrize("request_", largest(), ids=lambda message: type(message).__name__)
def test_the_largest_messages_pass(request_: Message) -> None:
    """A message that every limit allows is refused for its parts."""
    check_parts(type(request_), request_.SerializeToString(), LIMITS)


def test_a_tensor_is_one_part() -> None:
    """A large add, which is no trouble, is refused; or its elements are counted one by one."""
    request = messages.add("n", tokens=100_000)
    check_parts(type(request), request.SerializeToString(), LIMITS)


@pytest.mark.parametrize("more", [0, 1])
def test_fields_up_to_the_bound(more: int) -> None:
    """The bound is another than it says."""
    raw = b"\x1a\x00" * (FIELDS_MAX + more)
    if more:
        with pytest.raises(InvalidArgumentError, match="fields"):
            check_parts(pb.AddRequest, raw, LIMITS)
    else:
        check_parts(pb.AddRequest, raw, LIMITS)


@pytest.mark.parametrize("more", [0, 1])
def test_elements_up_to_the_bound(more: int) -> None:
    """The bound is another than it says."""
    request = pb.IdList(ids=[300] * (LIMITS.ids_max + more))
    if more:
        with pytest.raises(InvalidArgumentError, match="1048577 elements"):
            check_parts(type(request), request.SerializeToString(), LIMITS)
    else:
        check_parts(type(request), request.SerializeToString(), LIMITS)


def refused(kind: type[Message], raw: bytes) -> bool:
    """Whether bytes are refused before they are parsed; nothing else may happen to them."""
    try:
        check_parts(kind, raw, LIMITS)
    except InvalidArgumentError:
        return True
    return False


def parsed(kind: type[Message], raw: bytes) -> bool:
    """Whether bytes are a message of this kind."""
    try:
        kind.FromString(raw)
    except DecodeError:
        return False
    return True


@settings(max_examples=300)
@given(seed=st.integers(0, 2**32), method=st.sampled_from(METHOD_NAMES))
def test_no_small_message_is_refused(seed: int, method: str) -> None:
    """Bytes that are a message are taken for none (but for groups, of which this wire has none), or raise."""
    request = valid(method)
    raw = Mutator([valid(each).SerializeToString() for each in METHOD_NAMES], seed=seed).of(
        request.SerializeToString()
    )
    if refused(type(request), raw) and parsed(type(request), raw):
        assert any(byte & 7 in (3, 4) for byte in raw)


def test_noise_is_refused_or_parsed() -> None:
    """Counting parts of noise raises what is no answer for its sender."""
    noise = random.Random(0)
    for _ in range(3000):
        raw = noise.randbytes(noise.randrange(60))
        if not refused(pb.AddRequest, raw):
            parsed(pb.AddRequest, raw)
