"""What a call without gRPC looks like on its socket: a prefix, a head, a message."""

from __future__ import annotations

import math
import socket
import struct

from google.protobuf.message import DecodeError

from recollect._url import SOCKET_PATH_BYTES_MAX
from recollect.errors import (
    DeadlineExceededError,
    InternalError,
    RecollectError,
    UnavailableError,
    error_from_status,
)
from recollect.v1 import memory_pb2 as pb

SUFFIX = ".direct"
"""After the path of gRPC's socket: where the server answers such calls. It knows it too, and what follows."""

MARK = b"RCD1"
"""A server says so to whom it lets in, and each frame begins with it. The last byte is the version."""

PREFIX = struct.Struct("<4sII")
"""The mark, bytes of the head, bytes of the message."""

CONNECTIONS_MAX = 8
"""Of one client: calls on the way at the same time. Others take gRPC."""

GREETING_S = 1.0
"""A server that says nothing for so long does not let the client in; callers with less time add theirs up."""

PAUSE_S = 5.0
"""After the server did not let a client connect: it takes gRPC meanwhile."""


def socket_of(path: str | None) -> str | None:
    """Where to connect, by the path of gRPC's socket; None: nowhere."""
    address = "" if path is None else path + SUFFIX
    return address if address and len(address.encode()) <= SOCKET_PATH_BYTES_MAX else None


def greeting_s(left_s: float | None) -> float:
    """How long to wait for a server to let the client in, for a caller who waits that long for an answer.

    Not all of it: gRPC may answer in the rest.
    """
    return GREETING_S if left_s is None else max(1e-6, min(GREETING_S, left_s / 2))


def in_vain_s(error: OSError, wait_s: float) -> float:
    """How much a failed attempt to be let in counts for: endless where the server said so."""
    return wait_s if isinstance(error, TimeoutError) else math.inf


def dialled(address: str) -> socket.socket:
    """A connection that does not block.

    Raises:
        OSError: There is no server, or too many wait for it.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A unix socket connects at once, or not at all: there would be no end of waiting for a full queue.
        connection.setblocking(False)
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def is_quiet(connection: socket.socket) -> bool:
    """Whether a connection that does not block is open still. Between calls there is nothing to be read."""
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def frame(
    method: str, message: bytes, *, token: str, timeout_s: float | None, headers: tuple[tuple[str, str], ...]
) -> bytes:
    """A call as bytes."""
    head = pb.DirectCall(method=method, credential=token, timeout_s=timeout_s)
    if headers:
        head.traceparent = dict(headers).get("traceparent", "")
    raw = head.SerializeToString()
    return b"".join((PREFIX.pack(MARK, len(raw), len(message)), raw, message))


def sizes(prefix: bytes | bytearray) -> tuple[int, int]:
    """Bytes of an answer's head and of its message, by its first `PREFIX.size`.

    Raises:
        InternalError: It is no answer.
    """
    mark, head_bytes, message_bytes = PREFIX.unpack_from(prefix)
    if mark != MARK:
        raise _no_answer()
    return head_bytes, message_bytes


def refusal(head: bytes) -> RecollectError | None:
    """The error that an answer's head tells of; None: the call went well."""
    if not head:
        return None
    try:
        answer = pb.DirectAnswer.FromString(head)
    except DecodeError:
        return _no_answer()
    if not answer.status:
        return None
    return error_from_status(answer.status, answer.message, answer.error)


def late(url: str) -> DeadlineExceededError:
    """The error of a call whose time is over."""
    return DeadlineExceededError(f"{url} did not answer in time")


def lost(url: str, cause: OSError) -> UnavailableError:
    """The error of a call whose connection was lost: whether it was begun with is not known."""
    return UnavailableError(f"no memory server answers at {url}: {cause}")


def _no_answer() -> InternalError:
    return InternalError("The server's answer is none: what listens beside its socket?", reason="BAD_REPLY")
