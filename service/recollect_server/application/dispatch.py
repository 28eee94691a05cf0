"""One thread owns a device; calls wait for it in a bounded queue."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from recollect_server.domain.errors import DeadlineExceededError, DrainingError, OverloadedError
from recollect_server.domain.limits import Limits

Answer = TypeVar("Answer")

RETRY_AFTER_S = 0.1
"""What a refused caller is told to wait at least."""


class Dispatcher:
    """Runs work for one device, one piece at a time, in the order it came.

    So nothing behind it needs a lock, and GPU resources stay with one thread.

    Args:
        limits: `calls_waiting_max` bounds the queue.
    """

    def __init__(self, limits: Limits) -> None:
        self._waiting_max = limits.calls_waiting_max
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="recollect-device")
        self._lock = threading.Lock()
        self._waiting = 0
        self._draining = False

    def submit(self, work: Callable[[], Answer], *, deadline_s: float | None = None) -> Future[Answer]:
        """Queues work for the device's thread.

        Args:
            work: Run once, unless the deadline passes before its turn comes.
            deadline_s: In `time.monotonic()` seconds.

        Raises:
            OverloadedError: The queue is full.
            DrainingError: The server is shutting down.
        """
        with self._lock:
            if self._draining:
                raise DrainingError("the server is shutting down", retry_after_s=1.0)
            if self._waiting >= self._waiting_max:
                raise OverloadedError(
                    f"{self._waiting} calls are waiting for the device already", retry_after_s=RETRY_AFTER_S
                )
            self._waiting += 1
            future = self._executor.submit(_run, work, deadline_s)
        # A call that its caller gave up while it waited counts out here too.
        future.add_done_callback(self._count_out)
        return future

    def drain(self) -> None:
        """Takes no new work; returns when what was queued is done."""
        with self._lock:
            self._draining = True
        self._executor.shutdown(wait=True)

    def _count_out(self, _: Future[Answer]) -> None:
        with self._lock:
            self._waiting -= 1


def _run(work: Callable[[], Answer], deadline_s: float | None) -> Answer:
    if deadline_s is not None and time.monotonic() > deadline_s:
        raise DeadlineExceededError("the deadline passed while the call waited for the device")
    return work()
