"""How much work waits for a device, how fast it is done, and so: how long a new call would wait."""

from __future__ import annotations

from collections import OrderedDict

from recollect_server.domain.errors import OverloadedError, QuotaExceededError
from recollect_server.domain.limits import Limits

FIRST_RATE = 10e9
"""Multiply-adds per second, until some have been measured."""

RATE_OVER_S = 2.0
"""The rate is that of about the last so many seconds of work."""

RETRY_S_MIN, RETRY_S_MAX = 0.05, 5.0

CAUTION = 1.75
"""A call is refused if its answer would come too late if it took so much longer than estimated. On a machine
that does other work too some take half as long again, and what is accepted and then late is work for
nothing."""

CROWDED_S = 1.0
"""For so long after a call was refused for want of time, others are expected to go on asking as they do."""


class _Demand:
    """Weights of the tenants that asked within the last `CROWDED_S`, also of those that were refused."""

    def __init__(self) -> None:
        self._asked: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self.weights = 0

    def note(self, tenant: str, weight: int, now_s: float) -> None:
        """A tenant asks."""
        _, before = self._asked.pop(tenant, (0.0, 0))
        self._asked[tenant] = (now_s, weight)
        self.weights += weight - before
        while (first := next(iter(self._asked.values())))[0] < now_s - CROWDED_S:
            self._asked.popitem(last=False)
            self.weights -= first[1]


class _Account:
    """A tenant's calls under way, and how many and how costly those of each of its lanes are."""

    __slots__ = ("cost", "lanes", "under_way", "waiting", "weight")

    def __init__(self) -> None:
        self.under_way = 0
        self.waiting = 0
        self.cost = 0
        self.weight = 1
        self.lanes: dict[str, list[int]] = {}

    def own_cost(self, lane: str, cost: int) -> int:
        """What the tenant's share does until a new call of the lane is done: its lanes take turns."""
        _, before = self.lanes.get(lane, (0, 0))
        lanes = len(self.lanes) + (lane not in self.lanes)
        return min(self.cost + cost, (before + cost) * lanes)


class Load:
    """Counts of calls and their estimated costs, by tenant. Not thread-safe: `Dispatcher` locks.

    Args:
        limits: `calls_waiting_max` bounds how many wait.
        fair: Whether tenants share the device, or stand in one line.
    """

    def __init__(self, limits: Limits, *, fair: bool) -> None:
        self._waiting_max = limits.calls_waiting_max
        self._fair = fair
        self._accounts: dict[str, _Account] = {}
        self._waiting = 0
        self._cost = 0
        self._weights = 0
        self._demand = _Demand()
        self._crowded_until_s = float("-inf")
        self._work, self._seconds = FIRST_RATE * RATE_OVER_S / 10, RATE_OVER_S / 10

    @property
    def rate(self) -> float:
        """Multiply-adds that the device does in a second."""
        return self._work / self._seconds

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits or is under way."""
        return not self._accounts

    def by_tenant(self) -> dict[str, tuple[int, int]]:
        """Calls that wait for their first turn, and the cost of all that is left to do."""
        return {tenant: (each.waiting, each.cost) for tenant, each in self._accounts.items()}

    def queued(
        self, tenant: str, cost: int, *, weight: int | None, lane: str = "", waits: bool = True
    ) -> None:
        """Work is there; `waits`: it is a call, and none is taken beside too many that wait."""
        account = self._accounts.setdefault(tenant, _Account())
        weight = weight or account.weight
        self._weights += weight - (account.weight if account.under_way else 0)
        account.weight = weight
        account.under_way += 1
        account.waiting += waits
        self._waiting += waits
        account.lanes.setdefault(lane, [0, 0])[0] += 1
        self._change_cost(account, cost, lane)

    def began(self, tenant: str, *, waited: bool = True) -> None:
        """It waits no more: it has its first turn."""
        self._accounts[tenant].waiting -= waited
        self._waiting -= waited

    def worked(self, tenant: str, cost: int, *, lane: str = "") -> None:
        """So much of the cost that was estimated is behind it."""
        self._change_cost(self._accounts[tenant], -cost, lane)

    def ended(self, tenant: str, *, lane: str = "") -> None:
        """A call that had begun is over."""
        account = self._accounts[tenant]
        account.under_way -= 1
        account.lanes[lane][0] -= 1
        if not account.lanes[lane][0]:
            self._change_cost(account, -account.lanes[lane][1], lane)
            del account.lanes[lane]
        if not account.under_way:
            self._weights -= account.weight
            del self._accounts[tenant]

    def measured(self, work: int, seconds: float) -> None:
        """The device took `seconds` for `work`."""
        kept = max(0.0, 1.0 - seconds / RATE_OVER_S)
        self._work = kept * self._work + work
        self._seconds = kept * self._seconds + seconds

    def done_after_s(self, tenant: str, cost: int, *, weight: int, now_s: float, lane: str = "") -> float:
        """How long it would take until a new call of the tenant, and those before it, are done.

        In fair order the tenant's calls have its share of the device, the new one too: beside nine others it
        takes ten times as long as alone. Within the share, its lanes have equal parts in the same way. It is
        faster if these are done before, but not in a crowd: there others come for each that is done.
        """
        everything = self._cost + cost
        if not self._fair:
            return everything / self.rate
        account = self._accounts.get(tenant)
        if account is not None:
            own, weights = account.own_cost(lane, cost), self._weights
        else:
            own, weights = cost, self._weights + weight
        if now_s <= self._crowded_until_s:
            return own * max(weights, self._demand.weights) // weight / self.rate
        return min(everything, own * weights // weight) / self.rate

    def require_room(
        self,
        tenant: str,
        cost: int,
        *,
        weight: int,
        calls_queued_max: int,
        remaining_s: float | None,
        now_s: float,
        lane: str = "",
    ) -> None:
        """Refuses a call that there is no room or no time for.

        Raises:
            QuotaExceededError: The tenant has `calls_queued_max` waiting.
            OverloadedError: Too many wait in all, or the answer would come after `remaining_s`.
        """
        self._demand.note(tenant, weight, now_s)
        account = self._accounts.get(tenant)
        if account is not None and account.waiting >= calls_queued_max:
            raise QuotaExceededError(
                "calls_queued",
                f"{account.waiting} calls are waiting for the device already; {calls_queued_max} may. "
                "Wait for answers before sending more",
                retry_after_s=self._retry_after_s(tenant, weight, now_s, lane),
            )
        if self._waiting >= self._waiting_max:
            raise OverloadedError(
                f"{self._waiting} calls are waiting for the device already",
                retry_after_s=self._retry_after_s(tenant, weight, now_s, lane),
            )
        if remaining_s is None or not self._cost:
            return
        needed_s = CAUTION * self.done_after_s(tenant, cost, weight=weight, now_s=now_s, lane=lane)
        if needed_s > remaining_s:
            # Before others are expected to come: a hint tells how long the work that is here takes.
            retry_after_s = self._retry_after_s(tenant, weight, now_s, lane)
            self._crowded_until_s = now_s + CROWDED_S
            raise OverloadedError(
                f"the answer would take about {needed_s:.2g} s, and its deadline is in {remaining_s:.2g} s",
                retry_after_s=retry_after_s,
            )

    def _retry_after_s(self, tenant: str, weight: int, now_s: float, lane: str) -> float:
        wait_s = self.done_after_s(tenant, 0, weight=weight, now_s=now_s, lane=lane)
        return min(RETRY_S_MAX, max(RETRY_S_MIN, wait_s))

    def _change_cost(self, account: _Account, by: int, lane: str) -> None:
        account.cost += by
        account.lanes[lane][1] += by
        self._cost += by
