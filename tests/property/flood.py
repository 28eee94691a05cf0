"""Sends messages as fast as a server takes them, and looks at each answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
import grpc.aio

from recollect.v1 import memory_pb2 as pb
from tests.clients import path_of
from tests.installation import Installation

AT_ONCE = 32
TIMEOUT_S = 120
BLAMELESS = frozenset(
    {
        "OK",
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "FAILED_PRECONDITION",
        "RESOURCE_EXHAUSTED",
    }
)
"""Statuses that say nothing bad of the server."""
FAULTS_KEPT = 20


@dataclass
class Answers:
    """What came back.

    Attributes:
        statuses: How often each came, by "STATUS REASON".
        by_method: How many messages each method got.
        faults: Answers that must not be, with what brings them about; the first of them.
    """

    statuses: Counter[str] = field(default_factory=Counter[str])
    by_method: Counter[str] = field(default_factory=Counter[str])
    faults: list[str] = field(default_factory=list[str])

    def note(self, method: str, raw: bytes, status: str, message: str, detail: pb.ErrorDetail) -> None:
        """Counts an answer."""
        self.statuses[f"{status} {detail.reason}".strip()] += 1
        self.by_method[method] += 1
        explained = status == "OK" or (message and detail.reason and not detail.error_id)
        if (status not in BLAMELESS or not explained) and len(self.faults) < FAULTS_KEPT:
            self.faults.append(f"{method} {raw.hex()}: {status} {message!r} {detail}")


def flood(
    installation: Installation, token: str, messages: Iterator[tuple[str, bytes]], answers: Answers
) -> None:
    """Sends each message to its method, many at a time, and notes the answers."""

    async def send(channel: grpc.aio.Channel) -> None:
        metadata = (("authorization", f"Bearer {token}"),)
        for method, raw in messages:
            call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path_of(method))
            try:
                await call(raw, metadata=metadata, timeout=TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                # Not by `dict`: gRPC 1.76 makes none of it.
                trailing = [value for key, value in error.trailing_metadata() if key == "recollect-error-bin"]
                detail = trailing[0] if trailing else b""
                assert isinstance(detail, bytes)
                told = pb.ErrorDetail.FromString(detail)
                answers.note(method, raw, error.code().name, error.details() or "", told)
            else:
                answers.note(method, raw, "OK", "", pb.ErrorDetail())

    async def all_of_them() -> None:
        address = installation.server.tcp_url.removeprefix("grpc://")
        async with grpc.aio.insecure_channel(address) as channel:
            await asyncio.gather(*(send(channel) for _ in range(AT_ONCE)))

    asyncio.run(all_of_them())
