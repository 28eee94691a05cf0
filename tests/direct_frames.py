"""Calls without gRPC, byte by byte: written down a second time, from docs/adr/0031."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

from google.protobuf import message_factory
from google.protobuf.message import Message

from recollect.v1 import memory_pb2 as pb
from tests.clients import METHODS, Answer, path_of

SUFFIX = ".direct"
GREETING = b"RCD1"
PATIENCE_S = 30.0


def frame(head: bytes, message: bytes, *, mark: bytes = GREETING) -> bytes:
    """One frame."""
    return mark + len(head).to_bytes(4, "little") + len(message).to_bytes(4, "little") + head + message


def call_frame(
    path: str, message: bytes, *, token: str | None = None, timeout_s: float | None = None
) -> bytes:
    """A call."""
    head = pb.DirectCall(method=path, credential=token or "", timeout_s=timeout_s)
    return frame(head.SerializeToString(), message)


class Peer:
    """A connection to the socket beside gRPC's.

    Args:
        path: Of gRPC's socket.
    """

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE_S)
        self.socket.connect(f"{path}{SUFFIX}")
        self.greeting = self.received(len(GREETING))

    def received(self, size: int) -> bytes:
        """So many bytes, or what came before the end."""
        taken = b""
        while len(taken) < size:
            more = self.socket.recv(size - len(taken))
            if not more:
                break
            taken += more
        return taken

    def answer(self) -> tuple[pb.DirectAnswer, bytes]:
        """The next one."""
        prefix = self.received(12)
        assert prefix[:4] == GREETING, f"no answer, but {prefix!r}"
        head, message = (int.from_bytes(prefix[at : at + 4], "little") for at in (4, 8))
        return pb.DirectAnswer.FromString(self.received(head)), self.received(message)

    def is_closed(self) -> bool:
        """Whether the server has closed it, without another word."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:  # closed with bytes unread
            return True

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def raw_direct(path: Path, *, token: str | None = None) -> Callable[[str, Message | bytes], Answer[Message]]:
    """Raw calls, each on a connection of its own; bytes, too, which need not be a message."""

    def call(method: str, request: Message | bytes) -> Answer[Message]:
        full = path_of(method)
        raw = request if isinstance(request, bytes) else request.SerializeToString()
        with Peer(path) as peer:
            with contextlib.suppress(BrokenPipeError):  # it was refused before it was read
                peer.socket.sendall(call_frame(full, raw, token=token, timeout_s=60))
            head, message = peer.answer()
        if head.status:
            return Answer(head.status, head.message, head.error, None)
        reply_type = message_factory.GetMessageClass(METHODS[full].output_type)
        return Answer("OK", "", pb.ErrorDetail(), reply_type.FromString(message))

    return call
