"""One logical call as data: which messages to send, and how to make one result of the answers.

Nothing here does I/O: the sync and the async client differ only in how they run it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message

from recollect._regions import Region
from recollect.v1 import memory_pb2 as pb

Reply = TypeVar("Reply", bound=Message)
Reply_co = TypeVar("Reply_co", bound=Message, covariant=True)
Result = TypeVar("Result")

_MEMORY = "/recollect.v1.MemoryService/"
_NAMESPACES = "/recollect.v1.NamespaceService/"

ADD = f"{_MEMORY}Add"
SEARCH = f"{_MEMORY}Search"
SEARCH_STREAM = f"{_MEMORY}SearchStream"
ATTEND = f"{_MEMORY}Attend"
ATTEND_BACKWARD = f"{_MEMORY}AttendBackward"
EVICT = f"{_MEMORY}Evict"
OPEN_REGION = f"{_MEMORY}OpenRegion"
CREATE_NAMESPACE = f"{_NAMESPACES}CreateNamespace"
GET_NAMESPACE = f"{_NAMESPACES}GetNamespace"
LIST_NAMESPACES = f"{_NAMESPACES}ListNamespaces"
DELETE_NAMESPACE = f"{_NAMESPACES}DeleteNamespace"
GET_STATS = f"{_NAMESPACES}GetStats"
GET_SERVER_INFO = f"{_NAMESPACES}GetServerInfo"


class Collector(Protocol[Reply_co]):
    """Takes the parts of one streamed answer, as they came."""

    def take(self, raw: bytes) -> None: ...

    def take_first(self, part: pb.SearchPart) -> None: ...

    def take_shared(
        self, answer: pb.SearchResponse, memory: npt.NDArray[np.uint8], *, keep: bool
    ) -> None: ...

    def finish(self) -> Reply_co: ...


class Upload(Protocol):
    """A request whose tensors may travel beside its message, or be answered beside one.

    Attributes:
        size_bytes: Of what then lies there.
    """

    @property
    def size_bytes(self) -> int: ...

    def whole(self) -> Message: ...

    def beside(self, region: Region) -> Message: ...


@dataclass(frozen=True, slots=True)
class Work(Generic[Reply, Result]):
    """A logical call.

    Attributes:
        method: Full gRPC path.
        reply_type: What each request is answered with.
        retry_safe: Whether a request may be sent again: it reads, or a repeat is harmless.
        concurrent: Whether parts may run beside each other: reads only.
        count: How many requests.
        build: The request of a part. Called when it is about to be sent, so that not all exist at once;
            called once, so a retry sends the same message.
        accept: Takes the answer to a part. Parts may be answered in any order.
        finish: The result, after every answer.
        collect: Takes the chunks of a part's answer, a new one for each attempt; None: it is one message.
        upload: The request of a part in place of `build`, where tensors are worth sharing, its own or those
            of a streamed answer; None: not.
    """

    method: str
    reply_type: type[Reply]
    retry_safe: bool
    concurrent: bool
    count: int
    build: Callable[[int], Message]
    accept: Callable[[int, Reply], None]
    finish: Callable[[], Result]
    collect: Callable[[int], Collector[Reply]] | None = None
    upload: Callable[[int], Upload] | None = None


def single(
    method: str,
    request: Message,
    reply_type: type[Reply],
    convert: Callable[[Reply], Result],
    *,
    retry_safe: bool,
) -> Work[Reply, Result]:
    """A call of one request."""
    replies: list[Reply] = []
    return Work(
        method=method,
        reply_type=reply_type,
        retry_safe=retry_safe,
        concurrent=False,
        count=1,
        build=lambda _: request,
        accept=lambda _, reply: replies.append(reply),
        finish=lambda: convert(replies[0]),
    )
