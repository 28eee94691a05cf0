"""A session's line to its memory: times the calls, and knows what to do when nobody answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from torch import Tensor

from recollect import DeadlineExceededError, NotFoundError, UnavailableError
from recollect_torch._memory import Memory
from recollect_torch._outage import Call, Fallbacks, Outage, logger

OnError = Literal["raise", "local"]
Stale = Literal["raise", "zero"]
Answer = TypeVar("Answer")


class Link:
    """Calls to one memory, under one policy.

    With `on_error="local"` a memory that is away (UnavailableError, DeadlineExceededError) answers None, and
    a namespace that the server lost is made again, empty. All other errors are the caller's own and are
    raised: a quota that is used up does not come back by itself.

    Attributes:
        fallbacks: What went without the memory.
        waited_s: Time spent in calls.
        losses: How often the namespace was made again. Ids from before a loss mean nothing after it.
    """

    def __init__(
        self,
        memory: Memory,
        *,
        on_error: OnError,
        stale: Stale,
        timeout_s: float | None,
        outage: Outage,
    ) -> None:
        self.memory, self.on_error, self.stale, self.timeout_s = memory, on_error, stale, timeout_s
        self.fallbacks = Fallbacks()
        self.waited_s = 0.0
        self.losses = 0
        self._outage = outage
        self._to_forget: set[str] = set()

    def ask(self, kind: Call, call: Callable[[Memory], Answer], *, of: Tensor | None = None) -> Answer | None:
        """One call; None where the session goes on without an answer, which is counted under `kind`.

        Args:
            kind: What the call is for.
            call: Makes the call, once or, after a loss, twice.
            of: What is sent. On a GPU it is waited for first: `waited_s` does not count its computation.
        """
        if of is not None and of.is_cuda:
            torch.cuda.current_stream(of.device).synchronize()
        # Backward asks for entries by id, so a stream that is yet to be forgotten cannot mislead it.
        answer = self._ask(kind, call) if kind == "backward" or self._settle() else None
        if answer is None:
            self.count(kind)
        return answer

    def forget(self, streams: Sequence[str]) -> None:
        """Evicts all entries of these streams: now, or before anything else is asked of the memory."""
        self._to_forget.update(streams)
        if not self._settle():
            self.count("reset")

    def count(self, kind: Call) -> None:
        """Notes that something went on without the memory."""
        setattr(self.fallbacks, kind, getattr(self.fallbacks, kind) + 1)

    def _settle(self) -> bool:
        """Sends what `forget` could not; True if nothing is owed."""
        if not self._to_forget:
            return True
        streams = sorted(self._to_forget)

        def evict(memory: Memory) -> bool:
            memory.evict(streams=streams, all=True, missing_ok=True, timeout_s=self.timeout_s)
            return True

        if not self._ask("reset", evict):
            return False
        self._to_forget.clear()
        return True

    def _ask(self, kind: Call, call: Callable[[Memory], Answer]) -> Answer | None:
        if self._outage.pausing():
            self._outage.skipped()
            return None
        started = time.perf_counter()
        try:
            with self._timed():
                answer = self._ask_a_lossy_server(kind, call)
        except (UnavailableError, DeadlineExceededError) as error:
            if self.on_error == "raise":
                error.add_note('a session with on_error="local" goes on with local attention instead')
                raise
            self._outage.failed(error, took_s=time.perf_counter() - started)
            return None
        self._outage.answered()
        return answer

    def _ask_a_lossy_server(self, kind: Call, call: Callable[[Memory], Answer]) -> Answer | None:
        try:
            return call(self.memory)
        except NotFoundError as error:
            if self.on_error == "raise" or error.reason != "NAMESPACE_NOT_FOUND":
                raise
        self.memory.ensure(timeout_s=self.timeout_s)
        self.losses += 1
        logger.warning("the server lost namespace %r; made it again, empty", self.memory.name)
        return None if kind == "backward" else call(self.memory)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.waited_s += time.perf_counter() - started
