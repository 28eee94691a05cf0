"""A coalescing client of threads over a real memory, whose attends are noted and may be held back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from google.protobuf.message import Message

import recollect
from recollect._batches import ROWS_MAX
from recollect._coalescing import UNDER_WAY_MAX
from recollect._embedded_transport import EmbeddedTransport
from recollect._runner import Runner
from recollect._work import ATTEND, Collector, Reply, Upload
from recollect.v1 import memory_pb2 as pb
from tests.unit.client.attends import DIM, HEADS, STREAMS, Answer, queries


class Watched:
    """A real memory in this process, whose attends are noted and may be held back."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.failures: list[BaseException] = []  # of the next batches
        self.is_closed = False
        self.go = threading.Event()
        self.go.set()
        self.inner = EmbeddedTransport(None)

    def call(
        self, method: str, request: Message, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Notes how many rows an attend has."""
        if method == ATTEND:
            assert isinstance(request, pb.AttendRequest)
            self.rows.append(len(request.streams))
            if not self.go.wait(60 if timeout_s is None else timeout_s):
                raise recollect.DeadlineExceededError("for the test")
            if self.failures and len(request.streams) > 1:
                raise self.failures.pop()
        if self.is_closed:
            raise recollect.ClosedError("for the test")
        return self.inner.call(method, request, reply_type, timeout_s=timeout_s)

    def stream(
        self, method: str, question: Upload, collector: Collector[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Passes it on."""
        return self.inner.stream(method, question, collector, timeout_s=timeout_s)

    def upload(
        self, method: str, upload: Upload, reply_type: type[Reply], *, timeout_s: float | None
    ) -> Reply:
        """Passes it on."""
        return self.inner.upload(method, upload, reply_type, timeout_s=timeout_s)

    def close(self) -> None:
        """As a connection does."""
        self.is_closed = True

    def end(self) -> None:
        """Closes the memory."""
        self.inner.close()


class World:
    """One namespace with some streams, asked by threads of a coalescing client, and by a plain one."""

    def __init__(self) -> None:
        self.watched = Watched()
        self.threads = ThreadPoolExecutor(4 * ROWS_MAX)
        unwatched = Runner(self.watched.inner, "test://", timeout_s=60, retries=0)
        self.plain = recollect.Client(unwatched, "test://").create_namespace(
            "n", layers=[0, 1], heads=HEADS, key_dim=DIM, value_dim=DIM, capacity=64, dtype="float32"
        )
        generator = np.random.default_rng(0)
        names = [f"s{number}" for number in range(STREAMS)]
        for layer in (0, 1):
            keys, values = generator.standard_normal((2, STREAMS, HEADS, 16, DIM), dtype=np.float32)
            self.plain.add(layer, keys, values, streams=names)
        runner = Runner(self.watched, "test://", timeout_s=60, retries=1)
        self.client = recollect.Client(runner, "test://", coalesce=True)
        self.together = self.client.namespace("n")
        self.together.attend(0, queries(0), top_k=5, streams=["s0"])  # asks for the limits first
        self.watched.rows.clear()

    def ask(self, number: int, stream: str = "s1", *, timeout_s: float | None = None) -> Future[Answer]:
        """An attend in a thread."""
        return self.threads.submit(
            self.together.attend, 0, queries(number), top_k=5, streams=[stream], timeout_s=timeout_s
        )

    def right(self, number: int, stream: str = "s1") -> Answer:
        """The answer to it."""
        return self.plain.attend(0, queries(number), top_k=5, streams=[stream])

    def hold_up(self) -> list[Future[Answer]]:
        """As many attends as may be on their way, which are until `watched.go` is set."""
        self.watched.go.clear()
        held = [self.ask(0, "s0") for _ in range(UNDER_WAY_MAX)]
        until(lambda: len(self.watched.rows) == UNDER_WAY_MAX)
        return held

    def hold_up_the_next(self, *, rows: int) -> None:
        """Lets those go that are held up, but not the batch of so many rows that leaves then."""
        self.watched.go.set()
        self.watched.go.clear()
        until(lambda: rows in self.watched.rows)

    @property
    def waiting(self) -> int:
        """Attends that wait for those to be back."""
        coalescing = self.client._coalescing
        assert coalescing is not None
        return sum(len(line.waiting) for line in coalescing._lines.values())

    @property
    def is_idle(self) -> bool:
        """Nothing is remembered of attends that are over."""
        coalescing = self.client._coalescing
        return coalescing is not None and not coalescing._lines


def until(holds: Callable[[], bool]) -> None:
    """Waits for it."""
    ends_s = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < ends_s
        time.sleep(0.001)
