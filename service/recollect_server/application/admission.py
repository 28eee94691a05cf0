"""Who may begin a call now: before anything of it is read, and before it costs the device anything."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from recollect_server.domain.errors import OverloadedError, QuotaExceededError
from recollect_server.domain.limits import Limits
from recollect_server.domain.tenants import Quotas

TENANTS_REMEMBERED = 4096
"""Beyond so many, those that have long been idle are forgotten."""

RETRY_AFTER_S = 0.1
"""What a caller is told to wait when calls in flight have to end first: nobody knows when they will."""


@dataclass(slots=True)
class _Account:
    """What a tenant has under way.

    Attributes:
        allowance: Calls that it may begin at once; refilled at the rate of its quota.
        counted_at_s: When `allowance` was last brought up to date.
        calls: In flight.
        bytes: Of their messages.
        receiving: Messages that are being received, of unknown size.
        waiting: Calls that wait to receive theirs.
    """

    allowance: float
    counted_at_s: float
    calls: int = 0
    bytes: int = 0
    receiving: int = 0
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)


class Admitted:
    """A call that may go on; a context manager, which counts it out at the end.

    Args:
        account: Of its tenant.
        server: Of all tenants together.
        quotas: Of its tenant.
        limits: Of the server.
    """

    def __init__(self, account: _Account, server: _Account, *, quotas: Quotas, limits: Limits) -> None:
        self._account, self._server = account, server
        self._quotas, self._limits = quotas, limits
        self.bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for each in (self._account, self._server):
            each.calls -= 1
            each.bytes -= self.bytes
        self._let_next_receive()

    def receiving(self) -> _Receiving:
        """Waits until the tenant's messages in flight leave room for another one of the largest size."""
        return _Receiving(self)

    async def begin_receiving(self) -> None:
        """For `receiving`."""
        account = self._account
        if not account.waiting and self._has_room():
            account.receiving += 1
            return
        turn = asyncio.get_running_loop().create_future()
        account.waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in account.waiting:
                account.waiting.remove(turn)
            elif not turn.cancelled():  # its turn had just come
                self.end_receiving()
            raise

    def end_receiving(self) -> None:
        """For `receiving`."""
        self._account.receiving -= 1
        self._let_next_receive()

    def _has_room(self) -> bool:
        # One at least, so that a small quota is no end of everything.
        each = self._limits.message_bytes_max
        most = (self._quotas.bytes_in_flight_max - self._account.bytes) // each
        return self._account.receiving < max(1, most)

    def _let_next_receive(self) -> None:
        while self._account.waiting and self._has_room():
            turn = self._account.waiting.popleft()
            if not turn.done():
                self._account.receiving += 1
                turn.set_result(None)

    def holds(self, message_bytes: int) -> None:
        """Counts the bytes of the call's message.

        Raises:
            QuotaExceededError: The tenant's calls in flight hold too much together.
            OverloadedError: Those of all tenants do.
        """
        self._count(message_bytes)
        if self._account.bytes > self._quotas.bytes_in_flight_max:
            raise self._too_much()
        self._require_server_room()

    def holds_answer(self, answer_bytes: int) -> None:
        """Counts the bytes of an answer that will be held while it is sent in chunks.

        A tenant whose quota is smaller than a single answer may still have one at a time.

        Raises:
            QuotaExceededError: The tenant's calls in flight hold too much together.
            OverloadedError: Those of all tenants do.
        """
        others = self._account.bytes - self.bytes
        self._count(answer_bytes)
        if others and self._account.bytes > self._quotas.bytes_in_flight_max:
            raise self._too_much()
        self._require_server_room()

    def _count(self, more_bytes: int) -> None:
        self.bytes += more_bytes
        self._account.bytes += more_bytes
        self._server.bytes += more_bytes

    def _require_server_room(self) -> None:
        if self._server.bytes > self._limits.bytes_in_flight_max:
            raise OverloadedError(
                "the server holds as much in messages as it may", retry_after_s=RETRY_AFTER_S
            )

    def _too_much(self) -> QuotaExceededError:
        return QuotaExceededError(
            "bytes_in_flight",
            f"calls in flight hold {self._account.bytes:,} bytes; {self._quotas.bytes_in_flight_max:,} "
            "are allowed. Send fewer at a time, or smaller ones",
            retry_after_s=RETRY_AFTER_S,
        )


class _Receiving:
    """The time in which a call's message comes in."""

    __slots__ = ("_admitted",)

    def __init__(self, admitted: Admitted) -> None:
        self._admitted = admitted

    async def __aenter__(self) -> None:
        await self._admitted.begin_receiving()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._admitted.end_receiving()


class Admission:
    """Counts calls per second, calls in flight and their bytes, for each tenant and for all.

    Not thread-safe: the event loop owns it.

    Args:
        limits: The server's bounds.
        monotonic: Seconds of a clock that never goes back.
    """

    def __init__(self, limits: Limits, *, monotonic: Callable[[], float]) -> None:
        self._limits = limits
        self._monotonic = monotonic
        self._accounts: dict[str, _Account] = {}
        self._server = _Account(0.0, 0.0)

    @property
    def tenants(self) -> int:
        """How many tenants are remembered."""
        return len(self._accounts)

    def begin(self, tenant: str, quotas: Quotas) -> Admitted:
        """Lets a call in; `Admitted` counts it out at the end.

        Args:
            tenant: Whose it is.
            quotas: The tenant's.

        Raises:
            QuotaExceededError: The tenant calls too often, or has too many calls in flight.
            OverloadedError: All tenants together have.
        """
        account = self._account(tenant, quotas)
        self._require_room(account, quotas)
        account.allowance -= 1
        account.calls += 1
        self._server.calls += 1
        return Admitted(account, self._server, quotas=quotas, limits=self._limits)

    def _account(self, tenant: str, quotas: Quotas) -> _Account:
        now_s = self._monotonic()
        account = self._accounts.get(tenant)
        if account is None:
            if len(self._accounts) >= TENANTS_REMEMBERED:
                self._forget_idle(now_s)
            account = self._accounts[tenant] = _Account(float(quotas.calls_per_second), now_s)
        earned = (now_s - account.counted_at_s) * quotas.calls_per_second
        account.allowance = min(float(quotas.calls_per_second), account.allowance + earned)
        account.counted_at_s = now_s
        return account

    def _require_room(self, account: _Account, quotas: Quotas) -> None:
        if account.calls >= quotas.calls_in_flight_max:
            raise QuotaExceededError(
                "calls_in_flight",
                f"{account.calls} calls are in flight, which is the most; wait for one to end",
                retry_after_s=RETRY_AFTER_S,
            )
        if account.allowance < 1:
            raise QuotaExceededError(
                "calls_per_second",
                f"more than {quotas.calls_per_second} calls a second",
                retry_after_s=(1 - account.allowance) / quotas.calls_per_second,
            )
        if self._server.calls >= self._limits.calls_in_flight_max:
            raise OverloadedError(
                f"{self._server.calls} calls are in flight, which is the most", retry_after_s=RETRY_AFTER_S
            )

    def _forget_idle(self, now_s: float) -> None:
        # Whose allowance is full again after a second without calls loses nothing by being forgotten.
        idle = [name for name, a in self._accounts.items() if a.calls == 0 and now_s - a.counted_at_s >= 1]
        for name in idle:
            del self._accounts[name]
