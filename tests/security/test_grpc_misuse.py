"""gRPC and HTTP/2 used as nobody should: the server blames the caller or hangs up, and goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message

from tests.clients import answer_of, path_of
from tests.contract import messages
from tests.installation import Installation
from tests.security import http2
from tests.security.http2 import Headers, Http2, message, of_grpc
from tests.server_process import ServerProcess

NAMESPACE = "misused"
ATTEND = path_of("Attend")
TIMEOUT_S = 60
CODES = {code.value[0]: code.name for code in grpc.StatusCode}
MANY = 300


@dataclass
class Misused:
    """A server with keys, and a tenant's token."""

    installation: Installation
    token: str
    read: int = 0

    @property
    def port(self) -> int:
        """Of gRPC."""
        return self.installation.server.port

    @property
    def key(self) -> tuple[bytes, bytes]:
        """The header with the token."""
        return b"authorization", b"Bearer " + self.token.encode()

    def check(self) -> None:
        """The server is up, answers, and has nothing to complain of."""
        answer = self.installation.rpc("Attend", messages.attend(NAMESPACE), token=self.token)
        assert answer.code == "OK"
        assert self.installation.server.is_alive
        log = self.installation.server.log
        news, self.read = log[self.read :], len(log)
        assert "Traceback" not in news


@pytest.fixture(scope="module")
def misused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Misused]:
    """A server of this module's own."""
    data_dir: Path = tmp_path_factory.mktemp("data") / "data"
    with ServerProcess(data_dir=data_dir) as server, Installation(server) as installation:
        token = installation.tenant("misuser", calls_in_flight_max=1000, calls_queued_max=1000)
        installation.rpc("CreateNamespace", messages.create(NAMESPACE), token=token)
        installation.rpc("Add", messages.add(NAMESPACE), token=token)
        yield Misused(installation, token)


def raw_attend() -> bytes:
    """A message that is right."""
    return messages.attend(NAMESPACE).SerializeToString()


def sent(misused: Misused, headers: Headers, body: bytes, *, flags: int = http2.END_HEADERS) -> str:
    """Makes a call by hand; the status, or "none" where the call or its connection is just closed."""
    with Http2(misused.port) as connection:
        connection.begin(1, headers, flags=flags)
        if not flags & http2.END_STREAM:
            connection.data(1, body)
        status = connection.reply().status
    return "none" if status is None else CODES[status]


def without(headers: Headers, *names: bytes) -> Headers:
    """Headers less some."""
    return [each for each in headers if each[0] not in names]


def test_a_call_by_hand(misused: Misused) -> None:
    """What the tests below spoil is refused for another reason than that it is spoilt."""
    assert sent(misused, of_grpc(ATTEND, misused.key), message(raw_attend())) == "OK"
    assert sent(misused, of_grpc(ATTEND), message(raw_attend())) == "UNAUTHENTICATED"


IS_TOLD = tuple(map(int, grpc.__version__.split(".")[:2])) >= (1, 81)
"""What gRPC refuses by itself: up to 1.80 it closes the call, since then it says why. A defect of ours would
leave a traceback, which `Misused.check` looks for."""

BY_GRPC = {"none", "INTERNAL"} if IS_TOLD else {"none"}
TOO_LARGE, MALFORMED = ({"RESOURCE_EXHAUSTED"}, {"INTERNAL"}) if IS_TOLD else (set[str](), set[str]())


HEADERS: dict[str, tuple[Headers, set[str]]] = {
    "a key that is not ASCII": (
        of_grpc(ATTEND, (b"authorization", b"Bearer \xff\xfe\x00")),
        {"UNAUTHENTICATED"},
    ),
    "a key with a line break": (
        of_grpc(ATTEND, (b"authorization", b"Bearer a\r\nb: c")),
        {"UNAUTHENTICATED"},
    ),
    "an empty key": (of_grpc(ATTEND, (b"authorization", b"")), {"UNAUTHENTICATED"}),
    "a scheme alone": (of_grpc(ATTEND, (b"authorization", b"Bearer")), {"UNAUTHENTICATED"}),
    "another scheme": (of_grpc(ATTEND, (b"authorization", b"Basic cms6")), {"UNAUTHENTICATED"}),
    "a long key": (of_grpc(ATTEND, (b"authorization", b"Bearer " + b"k" * 7000)), {"UNAUTHENTICATED"}),
    "a key beyond all bounds": (
        of_grpc(ATTEND, (b"authorization", b"Bearer " + b"k" * 16_000)),
        {"UNAUTHENTICATED", "RESOURCE_EXHAUSTED", "none"},
    ),
    "a key in binary": (of_grpc(ATTEND, (b"authorization-bin", b"AAAA")), {"UNAUTHENTICATED"}),
    "no path": (without(of_grpc(ATTEND), b":path"), {"UNKNOWN", "none"}),
    "an empty path": (of_grpc(""), {"UNIMPLEMENTED", "none"}),
    "a path without a method": (of_grpc("/recollect.v1.MemoryService"), {"UNIMPLEMENTED"}),
    "an unknown method": (of_grpc("/recollect.v1.MemoryService/Steal"), {"UNIMPLEMENTED"}),
    "an unknown service": (of_grpc("/recollect.v2.MemoryService/Attend"), {"UNIMPLEMENTED"}),
    "an upper-case header": (of_grpc(ATTEND, (b"X-Upper", b"1")), {"UNAUTHENTICATED", *BY_GRPC}),
}
"""Before anybody is known."""


@pytest.mark.parametrize("case", HEADERS)
def test_headers_of_a_stranger(misused: Misused, case: str) -> None:
    """Odd headers, which anybody can send, are a defect, or let somebody in."""
    headers, allowed = HEADERS[case]
    assert sent(misused, headers, message(raw_attend())) in allowed
    misused.check()


KNOWN: dict[str, tuple[tuple[bytes, bytes], set[str]]] = {
    "metadata that is not base64": ((b"x-request-id-bin", b"!!!!"), {"OK", *BY_GRPC}),
    "binary metadata": ((b"x-request-id-bin", b"AP8A/w"), {"OK"}),
    "an id for logs with control characters": ((b"x-request-id", b"a\x01\x7f\r\n{"), {"OK", "none"}),
    "an id for logs of kilobytes": ((b"x-request-id", b"i" * 4000), {"OK"}),
    "a trace that is none": ((b"traceparent", b"00-zz-\xff-1"), {"OK"}),
    "a deadline that is none": ((b"grpc-timeout", b"soon"), BY_GRPC),
    "a deadline in the past": ((b"grpc-timeout", b"-1S"), BY_GRPC),
    "a deadline at once": ((b"grpc-timeout", b"0n"), {"DEADLINE_EXCEEDED"}),
    "a deadline in ten thousand years": ((b"grpc-timeout", b"99999999H"), {"OK"}),
    "compression": ((b"grpc-encoding", b"gzip"), {"UNIMPLEMENTED"}),
    "compression that nobody knows": ((b"grpc-encoding", b"odd"), {"UNIMPLEMENTED", *BY_GRPC}),
}


@pytest.mark.parametrize("case", KNOWN)
def test_headers_of_a_caller(misused: Misused, case: str) -> None:
    """Odd headers beside a good key are a defect."""
    more, allowed = KNOWN[case]
    assert sent(misused, of_grpc(ATTEND, misused.key, more), message(raw_attend())) in allowed
    misused.check()


def test_two_keys_are_none(misused: Misused) -> None:
    """A proxy that checks one of two keys, and this server that takes the other, disagree on who it is."""
    other = (b"authorization", b"Bearer " + misused.installation.token("misuser").encode())
    for pair in ((misused.key, other), (other, misused.key), (misused.key, misused.key)):
        assert sent(misused, of_grpc(ATTEND, *pair), message(raw_attend())) == "UNAUTHENTICATED"


def bodies() -> dict[str, tuple[bytes, set[str]]]:
    """Bodies of a call, and how they may be answered."""
    right = raw_attend()
    refused = {"INVALID_ARGUMENT"}
    return {
        "nothing": (b"", refused),
        "half of a length": (b"\0\0", refused),
        "an empty message": (message(b""), refused),
        "half a message": (message(right[: len(right) // 2], size=len(right)), refused),
        "a message that is said to have 4 GiB": (
            message(right, size=2**32 - 1),
            {*TOO_LARGE, *refused},
        ),
        "a message that is said to be compressed": (message(right, flag=1), {"OK", *MALFORMED, *refused}),
        "a message with a flag that means nothing": (message(right, flag=7), refused),
        "many messages": (message(right) * 100, {"OK"}),
        "a message and then noise": (message(right) + b"\xff" * 1000, {"OK"}),
        "noise": (b"\xff" * 1000, refused),
    }


@pytest.mark.parametrize("case", bodies())
def test_bodies(misused: Misused, case: str) -> None:
    """A body that is not one message is a defect, or waited for without end."""
    body, allowed = bodies()[case]
    assert sent(misused, of_grpc(ATTEND, misused.key), body) in allowed
    assert sent(misused, of_grpc(ATTEND), body) == "UNAUTHENTICATED"
    misused.check()


def test_a_call_that_ends_with_its_headers(misused: Misused) -> None:
    """A call without any body is a defect."""
    ended = http2.END_HEADERS | http2.END_STREAM
    assert sent(misused, of_grpc(ATTEND, misused.key), b"", flags=ended) == "INVALID_ARGUMENT"
    misused.check()


def test_streams_where_there_are_none(misused: Misused) -> None:
    """A client that takes a call for a stream, of requests or of answers, breaks it."""
    metadata = (("authorization", f"Bearer {misused.token}"),)
    right = raw_attend()
    with grpc.insecure_channel(f"127.0.0.1:{misused.port}") as channel:
        stream: grpc.StreamStreamMultiCallable[bytes, Message] = channel.stream_stream(ATTEND)
        assert len(list(stream(iter([right] * MANY), metadata=metadata, timeout=TIMEOUT_S))) == 1
        upload: grpc.StreamUnaryMultiCallable[bytes, Message] = channel.stream_unary(ATTEND)
        none = answer_of(lambda: upload(iter(()), metadata=metadata, timeout=TIMEOUT_S))
        assert (none.code, none.detail.argument) == ("INVALID_ARGUMENT", "request")
    misused.check()


FRAMES: dict[str, bytes] = {
    "a body without a call": http2.frame(http2.DATA, 0, 1, b"x"),
    "a call of the server's": http2.frame(http2.HEADERS, 4, 2, http2.packed(of_grpc(ATTEND))),
    "a call on the connection itself": http2.frame(http2.HEADERS, 4, 0, http2.packed(of_grpc(ATTEND))),
    "headers that are none": http2.frame(http2.HEADERS, 4, 1, b"\xff" * 50),
    "settings cut short": http2.frame(http2.SETTINGS, 0, 0, b"x"),
    "a continuation of nothing": http2.frame(http2.CONTINUATION, 0, 1, b"x"),
    "headers without end": http2.frame(http2.HEADERS, 0, 1, http2.packed(of_grpc(ATTEND)))
    + http2.frame(http2.CONTINUATION, 0, 1, http2.packed([(b"a", b"b")]) * 100) * 500,
    "a window beyond all bounds": http2.frame(http2.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 3,
    "pings": http2.frame(http2.PING, 0, 0, bytes(8)) * 2000,
    "settings": http2.frame(http2.SETTINGS, 0, 0, b"") * 2000,
    "noise": bytes(range(256)) * 40,
}


@pytest.mark.parametrize("case", FRAMES)
def test_frames(misused: Misused, case: str) -> None:
    """Broken HTTP/2, which anybody can send, ends more than its own connection."""
    with Http2(misused.port) as connection:
        connection.send(FRAMES[case])
    misused.check()


@pytest.mark.parametrize(
    "greeting", [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" + bytes(600)]
)
def test_other_protocols(misused: Misused, greeting: bytes) -> None:
    """Somebody who takes the port for a web server's, or for one with TLS, brings it down."""
    with Http2(misused.port, greet=False) as connection:
        connection.send(greeting)
        assert connection.reply().status is None
    misused.check()


def test_calls_that_are_cancelled_midway(misused: Misused) -> None:
    """Callers who give up, at any moment, leave something behind that breaks or blocks later calls."""
    part = message(raw_attend()[:50], size=10_000_000)
    with Http2(misused.port) as connection:
        for number in range(MANY):
            stream = 2 * number + 1
            connection.begin(stream, of_grpc(ATTEND, misused.key))
            if number % 3:
                connection.data(stream, part if number % 3 == 1 else message(raw_attend()), end=False)
            connection.send(http2.frame(http2.RST_STREAM, 0, stream, (8).to_bytes(4, "big")))
    for number in range(MANY // 3):  # the connection with them
        with Http2(misused.port) as connection:
            connection.begin(1, of_grpc(ATTEND, misused.key))
            connection.data(1, part, end=bool(number % 2))
    misused.check()


def test_clients_that_cancel(misused: Misused) -> None:
    """As above, with the library that callers use, and calls that have reached the device."""
    metadata = (("authorization", f"Bearer {misused.token}"),)
    end = threading.Event()

    def silence() -> Iterator[bytes]:
        end.wait()
        yield from ()

    with grpc.insecure_channel(f"127.0.0.1:{misused.port}") as channel:
        send: grpc.UnaryUnaryMultiCallable[bytes, Message] = channel.unary_unary(ATTEND)
        futures = [send.future(raw_attend(), metadata=metadata) for _ in range(MANY)]
        for each in futures:
            each.cancel()
        upload: grpc.StreamUnaryMultiCallable[bytes, Message] = channel.stream_unary(ATTEND)
        waiting = [upload.future(silence(), metadata=metadata) for _ in range(20)]
        for each in waiting:
            each.cancel()
        end.set()
    misused.check()
