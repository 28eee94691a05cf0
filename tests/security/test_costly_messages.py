"""Messages that cost the server far more than they cost to send: refused before they do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
import pytest
from google.protobuf.message import Message

from recollect.v1 import memory_pb2 as pb
from tests.clients import path_of
from tests.contract import messages
from tests.installation import Installation
from tests.property.mutations import DELIMITED, varint
from tests.server_process import ServerProcess

NAMESPACE = "costly"
MEBIBYTE = 1024**2
SIZE = 16 * MEBIBYTE
ROUNDS = 20
GROWTH_BYTES_MAX = 12 * SIZE
"""A message is there twice or thrice while it is received and parsed, and the allocator keeps some of that;
it is far less than `ROUNDS` of them."""


@dataclass(frozen=True)
class Target:
    """A server with keys, and a tenant's token."""

    installation: Installation
    token: str
    process: psutil.Process

    def grown(self, send: Callable[[], object], *, rounds: int = ROUNDS) -> int:
        """By how many bytes the server grows over repetitions of a call, at most."""
        before = self.process.memory_info().rss
        most = before
        for _ in range(rounds):
            send()
            most = max(most, self.process.memory_info().rss)
        assert self.installation.server.is_alive
        assert "Traceback" not in self.installation.server.log
        return int(most - before)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A server of this module's own."""
    data_dir: Path = tmp_path_factory.mktemp("data") / "data"
    limits = {"message_bytes_max": 2 * SIZE}
    with ServerProcess(data_dir=data_dir, limits=limits) as server, Installation(server) as installation:
        token = installation.tenant("costly")
        installation.rpc("CreateNamespace", messages.create(NAMESPACE), token=token)
        installation.rpc("Add", messages.add(NAMESPACE), token=token)
        yield Target(installation, token, psutil.Process(server.process.pid))


def packed(number: int, elements: int) -> bytes:
    """A list of small numbers as a field."""
    return varint(number << 3 | DELIMITED) + varint(elements) + bytes([messages.LAYER]) * elements


def within(number: int, content: bytes) -> bytes:
    """A message as a field."""
    return varint(number << 3 | DELIMITED) + varint(len(content)) + content


ADD, SEARCH = messages.add(NAMESPACE).SerializeToString(), messages.search(NAMESPACE).SerializeToString()
EVICT = pb.EvictRequest(namespace=NAMESPACE, streams=["a"]).SerializeToString()
ATTEND = messages.attend(NAMESPACE).SerializeToString()
BACKWARD = messages.attend_backward(NAMESPACE, pb.EntryIds()).SerializeToString()
STREAMS = b"\x1a\x00" * (SIZE // 2)
"""Of most messages: empty names."""

LISTS: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "streams of an add": ("Add", "request", lambda: ADD + STREAMS),
    "streams of a search": ("Search", "request", lambda: SEARCH + STREAMS),
    "streams of stats": (
        "GetStats",
        "request",
        lambda: within(1, NAMESPACE.encode()) + b"\x12\x01a" * (SIZE // 3),
    ),
    "lengths": ("Add", "lengths", lambda: ADD + packed(6, SIZE)),
    "lengths, one by one": ("Add", "request", lambda: ADD + b"\x30\x01" * (SIZE // 2)),
    "sequences": ("Attend", "min_sequences", lambda: ATTEND + packed(8, SIZE)),
    "sizes of a tensor": ("Attend", "shape", lambda: ATTEND + within(4, packed(3, SIZE))),
    "first ids": ("AttendBackward", "first_ids", lambda: BACKWARD + within(5, packed(2, SIZE))),
    "layers of an evict": ("Evict", "layers", lambda: EVICT + packed(3, SIZE)),
    "ids of an evict": ("Evict", "ids", lambda: EVICT + within(20, packed(1, SIZE))),
    "ids of an evict, one by one": (
        "Evict",
        "request",
        lambda: EVICT + within(20, b"\x08\x01" * (SIZE // 2)),
    ),
    "layers of a spec": (
        "CreateNamespace",
        "layers",
        lambda: messages.create("new").SerializeToString() + within(2, packed(1, SIZE)),
    ),
    "unknown fields": ("GetServerInfo", "request", lambda: b"\x78\x01" * (SIZE // 2)),
    "groups": ("GetServerInfo", "request", lambda: b"\x7b\x7c" * (SIZE // 2)),
}
"""For each: the method, the argument to blame, and a message."""


@pytest.mark.parametrize("case", LISTS)
def test_lists_without_end(target: Target, case: str) -> None:
    """One message keeps everybody waiting for seconds while it is parsed, and takes many times its size."""
    method, argument, make = LISTS[case]
    answer = target.installation.rpc(method, make(), token=target.token)
    assert (answer.code, answer.detail.argument) == ("INVALID_ARGUMENT", argument)
    assert target.grown(lambda: target.installation.rpc(method, make(), token=target.token), rounds=5) < (
        GROWTH_BYTES_MAX
    )


@pytest.mark.parametrize("case", ["twice", "too many"])
def test_layers_are_not_evicted_from_twice(target: Target, case: str) -> None:
    """A message names a layer a million times, has the device busy for minutes, and evicts too much."""
    layers = [messages.LAYER] * (2 if case == "twice" else 1000)
    request = pb.EvictRequest(namespace=NAMESPACE, streams=["a"], layers=layers, oldest=1)
    answer = target.installation.rpc("Evict", request, token=target.token)
    assert (answer.code, answer.detail.argument) == ("INVALID_ARGUMENT", "layers")


def test_stats_of_too_many_streams(target: Target) -> None:
    """Statistics are asked for with more streams than any other call may have."""
    request = pb.GetStatsRequest(namespace=NAMESPACE, streams=["a"] * 1025)
    answer = target.installation.rpc("GetStats", request, token=target.token)
    assert (answer.code, answer.detail.argument) == ("INVALID_ARGUMENT", "streams")


NAMED: dict[str, Callable[[str], Message]] = {
    "GetNamespace": lambda name: pb.GetNamespaceRequest(name=name),
    "GetStats": lambda name: pb.GetStatsRequest(namespace=name),
    "DeleteNamespace": lambda name: pb.DeleteNamespaceRequest(name=name),
    "Attend": messages.attend,
    "Evict": messages.evict,
}


@pytest.mark.parametrize("method", NAMED)
@pytest.mark.parametrize("letter", ["n", "€"])
def test_names_beyond_all_bounds(target: Target, method: str, letter: str) -> None:
    """A long name makes a status that does not fit the headers of an answer, so that nobody can read it."""
    for length in (129, 20_000, SIZE // 3):
        answer = target.installation.rpc(method, NAMED[method](letter * length), token=target.token)
        assert (answer.code, answer.detail.reason) == ("NOT_FOUND", "NAMESPACE_NOT_FOUND")
        assert letter in answer.message
        assert len(answer.message) < 1000


def test_names_are_not_remembered(target: Target) -> None:
    """Each name that does not exist is remembered, of whatever size, until the memory is full of them."""
    numbers = iter(range(ROUNDS))

    def ask() -> None:
        name = f"{next(numbers)}{'n' * SIZE}"
        request = pb.GetNamespaceRequest(name=name)
        assert target.installation.rpc("GetNamespace", request, token=target.token).code == "NOT_FOUND"

    assert target.grown(ask) < GROWTH_BYTES_MAX


def test_refused_messages_are_let_go(target: Target) -> None:
    """A refused message lives until garbage is collected, and many of them are more than there is memory."""
    raw = pb.GetNamespaceRequest(name="n" * SIZE).SerializeToString()

    def send() -> None:
        assert target.installation.rpc("GetNamespace", raw, token=target.token).code == "NOT_FOUND"

    assert target.grown(send) < GROWTH_BYTES_MAX


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_nothing_is_unpacked(target: Target, compression: grpc.Compression) -> None:
    """A megabyte of compressed zeros becomes a gigabyte in the server, before anybody looks at its size."""
    address = target.installation.server.tcp_url.removeprefix("grpc://")
    with grpc.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
        send: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path_of("GetNamespace"))
        metadata = (("authorization", f"Bearer {target.token}"),)

        def call() -> None:
            with pytest.raises(grpc.RpcError) as refused:
                send(bytes(20 * SIZE), timeout=60, metadata=metadata, compression=compression)
            assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED

        assert target.grown(call, rounds=1) < GROWTH_BYTES_MAX


def test_page_tokens_beyond_all_bounds(target: Target) -> None:
    """A page token of megabytes is decoded and digested before it is refused."""
    request = pb.ListNamespacesRequest(page_token="A" * SIZE)
    answer = target.installation.rpc("ListNamespaces", request, token=target.token)
    assert (answer.code, answer.detail.argument) == ("INVALID_ARGUMENT", "page_token")


def test_messages_that_are_too_large(target: Target) -> None:
    """A message beyond the limit is logged with a traceback each time, or taken."""
    for _ in range(3):
        answer = target.installation.rpc("Attend", bytes(4 * SIZE), token=target.token)
        assert answer.code == "RESOURCE_EXHAUSTED"
    assert "Traceback" not in target.installation.server.log
