"""HTTP/2 by hand, frame by frame, to send what no client library would."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from tests.closing import Closing

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
HEADER_BYTES, FRAME_BYTES_MAX = 9, 16_384
PATIENCE_S = 30.0

Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Reply:
    """An answer as it was on the wire.

    Attributes:
        headers: Packed, leading and trailing ones.
        body: With what gRPC puts before each message.
    """

    headers: bytes
    body: bytes

    @property
    def status(self) -> int | None:
        """Of gRPC; None if the call, or its connection, was just closed."""
        found = re.search(rb"grpc-status.(\d{1,2})", self.headers, re.DOTALL)
        return None if found is None else int(found[1])


class Http2(Closing):
    """One connection; each call is a stream that the caller numbers (odd, ascending).

    Args:
        port: On loopback.
        greet: Whether to begin as HTTP/2 wants it.
    """

    def __init__(self, port: int, *, greet: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        if greet:
            # No table of headers: so that what comes back can be read without keeping one.
            self.send(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", 1, 0)))

    def send(self, raw: bytes) -> None:
        """Bytes as they are; silent if the server has hung up, which it may."""
        with contextlib.suppress(OSError):
            self.socket.sendall(raw)

    def begin(self, stream: int, headers: Headers, *, flags: int = END_HEADERS) -> None:
        """The headers of a call."""
        self.send(frame(HEADERS, flags, stream, packed(headers)))

    def data(self, stream: int, raw: bytes, *, end: bool = True) -> None:
        """A part of a call's body, of 64 KiB at most: nothing here waits for a larger window."""
        last = max(0, len(raw) - 1) // FRAME_BYTES_MAX
        for number in range(last + 1):
            part = raw[number * FRAME_BYTES_MAX : (number + 1) * FRAME_BYTES_MAX]
            self.send(frame(DATA, END_STREAM if end and number == last else 0, stream, part))

    def reply(self) -> Reply:
        """All of what comes back until the first call, or the connection, ends."""
        headers, body = b"", b""
        while (found := self._frame()) is not None:
            kind, flags, payload = found
            if kind == HEADERS:
                headers += payload
            elif kind == DATA:
                body += payload
            elif kind == SETTINGS and not flags & ACK:
                self.send(frame(SETTINGS, ACK, 0, b""))
            if kind in (RST_STREAM, GOAWAY) or (kind in (HEADERS, DATA) and flags & END_STREAM):
                break
        return Reply(headers, body)

    def close(self) -> None:
        """Hangs up."""
        self.socket.close()

    def _frame(self) -> tuple[int, int, bytes] | None:
        head = self._exactly(HEADER_BYTES)
        if head is None:
            return None
        payload = self._exactly(int.from_bytes(head[:3], "big"))
        return None if payload is None else (head[3], head[4], payload)

    def _exactly(self, size: int) -> bytes | None:
        got = b""
        while len(got) < size:
            try:
                part = self.socket.recv(size - len(got))
            except ConnectionError:
                return None
            if not part:
                return None
            got += part
        return got


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """A frame of HTTP/2."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def packed(headers: Headers) -> bytes:
    """Headers as literals that nobody is to remember: HPACK without its tables and codes."""
    return b"".join(b"\x10" + _text(name) + _text(value) for name, value in headers)


def of_grpc(path: str, *more: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """The headers of an ordinary call, and more."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"localhost"),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *more,
    ]


def message(raw: bytes, *, flag: int = 0, size: int | None = None) -> bytes:
    """A message as gRPC puts it into a body, or one that lies about its size."""
    return bytes([flag]) + (len(raw) if size is None else size).to_bytes(4, "big") + raw


def _text(raw: bytes) -> bytes:
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    rest, out = len(raw) - 127, bytearray([127])
    while rest > 127:
        out.append(rest & 127 | 128)
        rest >>= 7
    out.append(rest)
    return bytes(out) + raw
