"""Runs work over a transport: sends the parts, tries again where that is safe, keeps the deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import overload

from recollect._administration import get_server_info
from recollect._checks import check_int
from recollect._results import Limits
from recollect._retry import Deadline, RetryPolicy
from recollect._transport import AsyncTransport, Transport
from recollect._work import Reply, Result, Work
from recollect.errors import (
    ClosedError,
    InvalidArgumentError,
    RecollectError,
    ResourceExhaustedError,
)

_PARTS_IN_FLIGHT = 4

_LIMITS_BELIEVED_S = 1.0
"""A call that is refused is the caller's mistake, unless the limits were asked for longer ago than that: the
server may have been started again, with others. So mistakes cost one message more in that time, all together;
no server starts again so fast."""

_LIMITS_ASKED_S = 1.0
"""The question takes so long at most: its caller's mistake is known already."""

_OF_LIMITS = frozenset({"MESSAGE_TOO_LARGE", ResourceExhaustedError.default_reason})
"""Reasons of messages that are too large, in the server's words and in gRPC's own, which gives none."""


@dataclass(frozen=True, slots=True)
class _Known:
    """What a server said its limits are, and when."""

    limits: Limits
    asked_at_s: float = field(default_factory=time.monotonic)

    def may_mislead(self, error: RecollectError) -> bool:
        """Whether a call failed that other limits may let pass."""
        if isinstance(error, ResourceExhaustedError):
            is_of_limits = error.reason in _OF_LIMITS
        else:
            is_of_limits = isinstance(error, InvalidArgumentError)
        return is_of_limits and time.monotonic() - self.asked_at_s >= _LIMITS_BELIEVED_S


class _Defaults:
    """What every call of a client shares."""

    def __init__(self, url: str, timeout_s: float | None, retries: int) -> None:
        Deadline(timeout_s)  # checks it
        self.url = url
        self.timeout_s = timeout_s
        self.policy = RetryPolicy(check_int("retries", retries, minimum=0))
        self.known: _Known | None = None
        self.is_closed = False

    def deadline(self, timeout_s: float | None) -> Deadline:
        if self.is_closed:
            raise ClosedError(f"the client of {self.url} is closed")
        return Deadline(self.timeout_s if timeout_s is None else timeout_s)

    def replaced(self, known: _Known) -> _Known | None:
        """What another thread or task has learned meanwhile, in place of that; None: nothing."""
        return None if self.known is known else self.known


@overload
def _sending(
    transport: Transport, work: Work[Reply, Result], index: int
) -> Callable[[float | None], Reply]: ...
@overload
def _sending(
    transport: AsyncTransport, work: Work[Reply, Result], index: int
) -> Callable[[float | None], Awaitable[Reply]]: ...
def _sending(
    transport: Transport | AsyncTransport, work: Work[Reply, Result], index: int
) -> Callable[[float | None], Reply | Awaitable[Reply]]:
    """What sends a part within so many seconds: the same request each time."""
    collect = work.collect
    if work.upload is not None:
        upload = work.upload(index)
        if collect is not None:
            return lambda left_s: transport.stream(work.method, upload, collect(index), timeout_s=left_s)
        return lambda left_s: transport.upload(work.method, upload, work.reply_type, timeout_s=left_s)
    request = work.build(index)
    return lambda left_s: transport.call(work.method, request, work.reply_type, timeout_s=left_s)


class Runner:
    """One part after the other."""

    def __init__(self, transport: Transport, url: str, *, timeout_s: float | None, retries: int) -> None:
        self._transport = transport
        self._defaults = _Defaults(url, timeout_s, retries)

    def run(self, work: Work[Reply, Result], timeout_s: float | None = None) -> Result:
        """Runs work that needs no splitting."""
        return self._run(work, self._defaults.deadline(timeout_s))

    def run_split(
        self, split: Callable[[Limits], Work[Reply, Result]], timeout_s: float | None = None
    ) -> Result:
        """Runs work that is split under the server's limits."""
        return self.run_by(self.deadline(timeout_s), split)

    def deadline(self, timeout_s: float | None) -> Deadline:
        """Of a call that begins now.

        Raises:
            ClosedError: The client is closed.
        """
        return self._defaults.deadline(timeout_s)

    def run_by(self, deadline: Deadline, split: Callable[[Limits], Work[Reply, Result]]) -> Result:
        """Runs work that is split under the server's limits, and has a deadline already."""
        known = self._defaults.known or self._ask(deadline)
        accepted: list[int] = []
        try:
            return self._run(split(known.limits), deadline, accepted)
        except RecollectError as error:
            latest = self._latest(known, deadline) if known.may_mislead(error) else None
            if latest is None or latest.limits == known.limits or accepted:
                raise
        return self._run(split(latest.limits), deadline)

    def close(self) -> None:
        """Closes the transport, once."""
        if not self._defaults.is_closed:
            self._defaults.is_closed = True
            self._transport.close()

    def _ask(self, deadline: Deadline) -> _Known:
        self._defaults.known = _Known(self._run(get_server_info(), deadline).limits)
        return self._defaults.known

    def _latest(self, known: _Known, deadline: Deadline) -> _Known | None:
        """Limits that may differ from those; None: nobody says now, and others are not to ask at once."""
        try:
            return self._defaults.replaced(known) or self._ask(deadline.within(_LIMITS_ASKED_S))
        except RecollectError:
            self._defaults.known = _Known(known.limits)
            return None

    def _run(
        self, work: Work[Reply, Result], deadline: Deadline, accepted: list[int] | None = None
    ) -> Result:
        """Sends all parts; `accepted` gets those that were answered, for when another one fails."""
        for index in range(work.count):
            work.accept(index, self._send(work, index, deadline))
            if accepted is not None:
                accepted.append(index)
        return work.finish()

    def _send(self, work: Work[Reply, Result], index: int, deadline: Deadline) -> Reply:
        send = _sending(self._transport, work, index)
        attempts = self._defaults.policy.start(deadline, retry_safe=work.retry_safe)
        while True:
            try:
                return send(deadline.left_s())
            except RecollectError as error:
                pause_s = attempts.pause_s(error)
            time.sleep(pause_s)


class AsyncRunner:
    """The parts of a read beside each other, a few at a time; those of a write one after the other."""

    def __init__(self, transport: AsyncTransport, url: str, *, timeout_s: float | None, retries: int) -> None:
        self._transport = transport
        self._defaults = _Defaults(url, timeout_s, retries)

    async def run(self, work: Work[Reply, Result], timeout_s: float | None = None) -> Result:
        """Runs work that needs no splitting."""
        return await self._run(work, self._defaults.deadline(timeout_s))

    async def run_split(
        self, split: Callable[[Limits], Work[Reply, Result]], timeout_s: float | None = None
    ) -> Result:
        """Runs work that is split under the server's limits."""
        return await self.run_by(self.deadline(timeout_s), split)

    def deadline(self, timeout_s: float | None) -> Deadline:
        """Of a call that begins now.

        Raises:
            ClosedError: The client is closed.
        """
        return self._defaults.deadline(timeout_s)

    async def run_by(self, deadline: Deadline, split: Callable[[Limits], Work[Reply, Result]]) -> Result:
        """Runs work that is split under the server's limits, and has a deadline already."""
        known = self._defaults.known or await self._ask(deadline)
        accepted: list[int] = []
        try:
            return await self._run(split(known.limits), deadline, accepted)
        except RecollectError as error:
            latest = await self._latest(known, deadline) if known.may_mislead(error) else None
            if latest is None or latest.limits == known.limits or accepted:
                raise
        return await self._run(split(latest.limits), deadline)

    async def close(self) -> None:
        """Closes the transport, once."""
        if not self._defaults.is_closed:
            self._defaults.is_closed = True
            await self._transport.close()

    async def _ask(self, deadline: Deadline) -> _Known:
        self._defaults.known = _Known((await self._run(get_server_info(), deadline)).limits)
        return self._defaults.known

    async def _latest(self, known: _Known, deadline: Deadline) -> _Known | None:
        """See `Runner`."""
        try:
            return self._defaults.replaced(known) or await self._ask(deadline.within(_LIMITS_ASKED_S))
        except RecollectError:
            self._defaults.known = _Known(known.limits)
            return None

    async def _run(
        self, work: Work[Reply, Result], deadline: Deadline, accepted: list[int] | None = None
    ) -> Result:
        """Sends all parts; `accepted` gets those that were answered, for when another one fails."""
        waiting = iter(range(work.count))

        async def take_parts() -> None:
            for index in waiting:  # shared: each worker takes the next part that nobody has
                work.accept(index, await self._send(work, index, deadline))
                if accepted is not None:
                    accepted.append(index)

        workers = min(work.count, _PARTS_IN_FLIGHT) if work.concurrent else 1
        if workers == 1:
            await take_parts()
        else:
            await _all_or_none([asyncio.create_task(take_parts()) for _ in range(workers)])
        return work.finish()

    async def _send(self, work: Work[Reply, Result], index: int, deadline: Deadline) -> Reply:
        send = _sending(self._transport, work, index)
        attempts = self._defaults.policy.start(deadline, retry_safe=work.retry_safe)
        while True:
            try:
                return await send(deadline.left_s())
            except RecollectError as error:
                pause_s = attempts.pause_s(error)
            await asyncio.sleep(pause_s)


async def _all_or_none(tasks: list[asyncio.Task[None]]) -> None:
    # Not a TaskGroup: callers are to see one error of the tree, not a group of them.
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
