"""Small attends that wait for the server at the same time go to it as one.

A message costs client and server about half a millisecond whatever is in it; what a decoding step asks for
takes less. So of the attends that are alike but for their streams and queries (of one namespace and layer,
with the same top_k, scale, ...) one message is on its way at a time, or two: those that come meanwhile are
collected, and leave together when one is back, as one attend of all their rows. Nothing waits for a clock.
The server would do the reads of a namespace one after the other anyway.

Each caller keeps its own deadline, and gets its own rows or its own error. Of the trace of a message that
carries several, it is known only that it is part of one of theirs.

Here is what a batch is; `Coalescing` sends those of threads, `AsyncCoalescing` those of an event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Generic, Protocol, TypeVar

from recollect._attends import Attend
from recollect._results import A, Array
from recollect._retry import Deadline
from recollect.errors import DeadlineExceededError

ROWS_MAX = 64
"""Of a batch, and of what is put into one."""

SMALL_BYTES = 32 * 1024
"""Of queries and ids. What is larger is worth a message of its own."""

BATCH_BYTES = 512 * 1024
"""Of the queries and ids of a batch: one message, far below any server's limit."""


class Waiting(Protocol):
    """An attend whose caller waits for those before it."""

    @property
    def asked(self) -> Attend[Array]: ...

    @property
    def deadline(self) -> Deadline: ...


Caller = TypeVar("Caller", bound=Waiting)


class Line(Generic[Caller]):
    """Attends of one kind.

    Attributes:
        kind: What they have in common.
        under_way: Messages.
        waiting: Those that leave when one of these is back.
    """

    __slots__ = ("kind", "under_way", "waiting")

    def __init__(self, kind: Hashable) -> None:
        self.kind = kind
        self.under_way = 1
        self.waiting: deque[Caller] = deque()

    def next_batch(self) -> list[Caller]:
        """Those that may leave now, together; none if nobody waits."""
        batch: list[Caller] = []
        rows = size = 0
        while self.waiting:
            asked = self.waiting[0].asked
            rows, size = rows + len(asked.read.streams), size + asked.size_bytes
            if batch and (rows > ROWS_MAX or size > BATCH_BYTES):
                break
            batch.append(self.waiting.popleft())
        return batch


def is_small(asked: Attend[A]) -> bool:
    """Whether it may share a message with others."""
    return len(asked.read.streams) <= ROWS_MAX and asked.size_bytes <= SMALL_BYTES


def most_patient(batch: Sequence[Caller]) -> Caller:
    """Whose deadline the message of all has: whoever has less time gives up by itself."""
    return max(batch, key=lambda each: each.deadline.end_s)


def rows_in(batch: Sequence[Attend[Array]]) -> Iterator[tuple[int, int]]:
    """Which rows of their result belong to each that was put together: from one on, and before another."""
    return pairwise(accumulate((len(asked.read.streams) for asked in batch), initial=0))


def too_late(deadline: Deadline) -> DeadlineExceededError:
    """For a caller whose time passed while others were asked."""
    return DeadlineExceededError(
        f"{deadline.timeout_s:g} s passed before the call could be sent and answered"
    )
