"""How long the server waits for what only a caller can do."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Literal, Self


class Patience:
    """Waits that may last equally long, so that they run out in the order in which they began.

    That takes one timer for all of them, where `asyncio.timeout` sets one for each. Belongs to an event loop.

    Args:
        limit_s: How long a wait may last.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._waits: dict[_Wait, None] = {}  # oldest first
        self._timer: asyncio.TimerHandle | None = None

    def wait(self) -> _Wait:
        """A context for a task that awaits: ends with a `TimeoutError` if it takes too long."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # whoever awaits is one
        wait = _Wait(self._waits, task, loop.time() + self._limit_s)
        if self._timer is None:
            self._timer = loop.call_at(wait.ends_s, self._look)
        return wait

    def _look(self) -> None:
        """Ends the waits that have run out. The next look is at the end of the oldest that is left."""
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._waits:
            oldest = next(iter(self._waits))
            if oldest.ends_s > loop.time():
                self._timer = loop.call_at(oldest.ends_s, self._look)
                return
            oldest.run_out()


class _Wait:
    """One wait, counted among `waits` from its beginning to its end."""

    __slots__ = ("_cancelling", "_has_run_out", "_task", "_waits", "ends_s")

    def __init__(self, waits: dict[_Wait, None], task: asyncio.Task[object], ends_s: float) -> None:
        self._waits = waits
        self._task = task
        self._cancelling = task.cancelling()
        self._has_run_out = False
        self.ends_s = ends_s

    def run_out(self) -> None:
        """Ends what is awaited."""
        del self._waits[self]
        self._has_run_out = True
        self._task.cancel()

    def __enter__(self) -> Self:
        self._waits[self] = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> Literal[False]:
        if not self._has_run_out:
            del self._waits[self]
        # As `asyncio.timeout` does it: a task that was cancelled from elsewhere too stays cancelled.
        elif self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error
        return False
