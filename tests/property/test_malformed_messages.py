"""Whatever is sent to the socket: an answer that blames the caller, and a server that stays up."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import cast

import grpc
import numpy as np
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recollect.v1 import memory_pb2 as pb
from tests.clients import METHODS, Answer, Raw, path_of, raw_grpc
from tests.contract import messages
from tests.server_process import ServerProcess

DEFECTS = {"INTERNAL", "UNKNOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}
NAME = "fuzzed"
_numbers = itertools.count()

int32s = st.one_of(st.integers(-2, 40), st.sampled_from([-(2**31), 2**31 - 1, 1024, 1025, 2049]))
int64s = st.one_of(st.integers(-2, 40), st.sampled_from([-(2**63), 2**63 - 1, 2**31, 2**32, 2**62]))
doubles = st.floats(width=64)
names = st.one_of(st.sampled_from([NAME, "a", "b", "", "nobody"]), st.text(max_size=20))
dtypes = st.sampled_from([*pb.DType.values(), 9, -1])
sizes = st.one_of(st.integers(0, 5), st.sampled_from([-1, -5, 2**31, 2**40, 2**62, -(2**63)]))


@st.composite
def tensors(draw: st.DrawFn) -> pb.Tensor:
    """Tensors whose bytes, dtype and shape may or may not go together; some hold what is not finite."""
    tensor = pb.Tensor()
    tensor.dtype = cast("pb.DType.ValueType", draw(dtypes))
    shape = draw(st.one_of(st.lists(sizes, max_size=6), st.tuples(*[st.integers(0, 4)] * 4)))
    tensor.shape.extend(shape)
    if draw(st.booleans()):
        itemsize = {pb.DTYPE_FLOAT32: 4, pb.DTYPE_INT32: 4, pb.DTYPE_INT64: 8}.get(tensor.dtype, 2)
        size = int(np.prod([min(max(n, 0), 8) for n in shape])) * itemsize
        seed = draw(st.integers(0, 3))
        tensor.data = bytes(size) if seed < 2 else np.random.default_rng(seed).bytes(size)
    else:
        tensor.data = draw(st.binary(max_size=64))
    if draw(st.integers(0, 9)) == 0:
        tensor.offset = draw(int64s)
    return tensor


def fields_in(kind: type[Message]) -> Sequence[FieldDescriptor]:
    """Descriptors of a message's fields."""
    return list(cast("Sequence[FieldDescriptor]", kind.DESCRIPTOR.fields))


def fields_of(kind: type[Message]) -> st.SearchStrategy[Message]:
    """Messages of a type with any of its fields set to anything of the field's type."""
    if kind is pb.Tensor:
        return tensors()

    @st.composite
    def build(draw: st.DrawFn) -> Message:
        made = kind()
        for field in fields_in(kind):
            if draw(st.integers(0, 9)) == 0:
                continue
            one = _values_of(field)
            if field.is_repeated:
                values = draw(st.lists(one, max_size=4))
                getattr(made, field.name).extend(values)
            elif field.message_type is not None:
                getattr(made, field.name).CopyFrom(draw(one))
            else:
                setattr(made, field.name, draw(one))
        return made

    return build()


def _values_of(field: FieldDescriptor) -> st.SearchStrategy[object]:
    if field.message_type is not None:
        return fields_of(message_factory.GetMessageClass(field.message_type))
    by_type: dict[int, st.SearchStrategy[object]] = {
        field.TYPE_STRING: names,
        field.TYPE_INT32: int32s,
        field.TYPE_INT64: int64s,
        field.TYPE_DOUBLE: doubles,
        field.TYPE_BOOL: st.booleans(),
        field.TYPE_ENUM: dtypes,
        field.TYPE_BYTES: st.binary(max_size=40),
    }
    return by_type[field.type]


def valid(method: str) -> Message:
    """A message that is right, to be spoilt in one place."""
    made: dict[str, Callable[[], Message]] = {
        "Add": lambda: messages.add(NAME),
        "Search": lambda: messages.search(NAME),
        "Attend": lambda: messages.attend(NAME),
        "Evict": lambda: messages.evict(NAME),
        "CreateNamespace": lambda: messages.create(f"new-{next(_numbers)}"),
    }
    if method == "AttendBackward":
        ids = pb.EntryIds(offsets=messages.tensor(np.full((2, 4, 3, 5), -1, np.int32), pb.DTYPE_INT32))
        ids.first_ids.extend([0, 0])
        return messages.attend_backward(NAME, ids)
    return made.get(method, message_factory.GetMessageClass(METHODS[path_of(method)].input_type))()


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server that must survive all of this; its log must stay clean."""
    with ServerProcess(limits={"memory_bytes_max": 64 * 1024 * 1024, "capacity_max": 4096}) as running:
        yield running
        assert running.is_alive
        assert "Traceback" not in running.log, running.log


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    """One connection for all."""
    with grpc.insecure_channel(server.tcp_url.removeprefix("grpc://")) as opened:
        raw = raw_grpc(opened)
        assert raw("CreateNamespace", messages.create(NAME)).code == "OK"
        assert raw("Add", messages.add(NAME)).code == "OK"
        yield opened


def check(server: ServerProcess, answer: Answer[Message]) -> None:
    """The caller's fault or nobody's, said in words; the server is up."""
    assert answer.code not in DEFECTS, answer
    assert answer.code == "OK" or answer.message
    assert server.is_alive


METHOD_NAMES = [path.rpartition("/")[2] for path in METHODS]
SPOILT = ["Add", "Search", "Attend", "AttendBackward", "Evict", "CreateNamespace"]
fuzz = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
fuzz_long = settings(fuzz, max_examples=1500)


def any_fields(method: str, data: st.DataObject) -> Message:
    """A well-formed message of nonsense."""
    kind = message_factory.GetMessageClass(METHODS[path_of(method)].input_type)
    return data.draw(fields_of(kind))


def one_field_wrong(method: str, data: st.DataObject) -> Message:
    """A message that is right but for one field."""
    request = valid(method)
    nonsense = data.draw(fields_of(type(request)))
    field = data.draw(st.sampled_from(fields_in(type(request))))
    request.ClearField(field.name)
    if field.is_repeated:
        getattr(request, field.name).extend(getattr(nonsense, field.name))
    elif field.message_type is not None:
        getattr(request, field.name).CopyFrom(getattr(nonsense, field.name))
    else:
        setattr(request, field.name, getattr(nonsense, field.name))
    return request


@pytest.mark.parametrize("method", METHOD_NAMES)
@fuzz
@given(data=st.data())
def test_any_fields(server: ServerProcess, channel: grpc.Channel, method: str, data: st.DataObject) -> None:
    """A well-formed message of nonsense was an internal error, or ended the server."""
    check(server, raw_grpc(channel)(method, any_fields(method, data)))


@pytest.mark.parametrize("method", SPOILT)
@fuzz
@given(data=st.data())
def test_one_field_wrong(
    server: ServerProcess, channel: grpc.Channel, method: str, data: st.DataObject
) -> None:
    """A message with one field of nonsense got past the checks."""
    check(server, raw_grpc(channel)(method, one_field_wrong(method, data)))


@pytest.mark.slow
@pytest.mark.parametrize("method", METHOD_NAMES)
@fuzz_long
@given(data=st.data())
def test_many_of_any_fields(
    server: ServerProcess, channel: grpc.Channel, method: str, data: st.DataObject
) -> None:
    """Rare nonsense in a well-formed message was an internal error, or ended the server."""
    check(server, raw_grpc(channel)(method, any_fields(method, data)))


@pytest.mark.slow
@pytest.mark.parametrize("method", SPOILT)
@fuzz_long
@given(data=st.data())
def test_many_of_one_field_wrong(
    server: ServerProcess, channel: grpc.Channel, method: str, data: st.DataObject
) -> None:
    """Rare nonsense in one field got past the checks."""
    check(server, raw_grpc(channel)(method, one_field_wrong(method, data)))


@pytest.mark.parametrize("method", METHOD_NAMES)
@fuzz
@given(data=st.binary(max_size=200))
def test_any_bytes(server: ServerProcess, channel: grpc.Channel, method: str, data: bytes) -> None:
    """Bytes that are no message at all were an internal error, or ended the server."""
    check(server, raw_grpc(channel)(method, data))


def test_the_server_still_answers_right(server: ServerProcess, channel: grpc.Channel) -> None:
    """After all of this a plain call does not work any more."""
    raw: Raw = raw_grpc(channel)
    name = f"after-{next(_numbers)}"
    assert raw("CreateNamespace", messages.create(name)).code == "OK"
    assert raw("Add", messages.add(name)).code == "OK"
    assert raw("Attend", messages.attend(name)).code == "OK"
    assert server.is_alive
