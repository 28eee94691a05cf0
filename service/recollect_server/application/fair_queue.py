"""Whose turn it is: weighted fair order among tenants, first come first served within one.

Start-time fair queueing. Each tenant has a tag: the virtual time at which its next turn begins. A turn
moves the tag on by the work that was done, divided by the tenant's weight; the smallest tag is next, and
is the virtual time then. A tenant that comes anew begins at the present virtual time, so having been idle
earns it nothing; one that comes back soon keeps its tag, so pausing between calls pays off nothing.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Generic, TypeVar

Call = TypeVar("Call")

TAG_UNIT = 2**40
"""Tags are whole numbers, which never lose a small step beside a large sum; this is their precision."""


class _Lane(Generic[Call]):
    """A tenant's calls, the one that has begun first."""

    __slots__ = ("calls", "tag", "tenant", "weight")

    def __init__(self, tenant: str, tag: int) -> None:
        self.tenant = tenant
        self.tag = tag
        self.weight = 1
        self.calls: deque[Call] = deque()


class FairQueue(Generic[Call]):
    """Calls that wait or are paused. No threads, no clock, no idea of what a call is.

    A turn is `take`, then `give_back`. Both take O(log tenants), and a tenant without calls is forgotten as
    soon as the virtual time has reached its tag.

    Args:
        fair: False puts all into one line, first come first served.
    """

    def __init__(self, *, fair: bool = True) -> None:
        self._fair = fair
        self._lanes: dict[str, _Lane[Call]] = {}
        # One entry for each lane but the one that has its turn; the number breaks ties by age.
        self._order: list[tuple[int, int, _Lane[Call]]] = []
        self._entries = 0
        self._virtual_time = 0
        self._current: _Lane[Call] | None = None

    @property
    def tenants(self) -> int:
        """How many are remembered."""
        return len(self._lanes)

    def push(self, tenant: str, call: Call, *, weight: int = 1) -> None:
        """Queues a call behind the others of its tenant.

        Args:
            tenant: Whose it is.
            call: What `take` returns when its turn comes.
            weight: Of the tenant, from now on: its share beside that of others.
        """
        key = tenant if self._fair else ""
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(key, self._virtual_time)
            self._enter(lane)
        lane.weight = weight
        lane.calls.append(call)

    def take(self) -> Call | None:
        """The call whose turn it is, or None if there is none. It keeps its place until `give_back`."""
        while self._order:
            tag, _, lane = heapq.heappop(self._order)
            self._virtual_time = tag
            if lane.calls:
                self._current = lane
                return lane.calls[0]
            del self._lanes[lane.tenant]
        return None

    def give_back(self, work: int, *, ended: bool) -> None:
        """Ends the turn of the call that `take` returned.

        Args:
            work: That was done for it in this turn, in any unit.
            ended: It needs no other turn; otherwise it is its tenant's next again.
        """
        lane, self._current = self._current, None
        if lane is None:
            raise RuntimeError("there was no turn to end")
        if ended:
            lane.calls.popleft()
        lane.tag += work * TAG_UNIT // lane.weight
        self._enter(lane)

    def remove(self, tenant: str, call: Call) -> bool:
        """Takes out a call that has not had a turn; False if it is not there."""
        lane = self._lanes.get(tenant if self._fair else "")
        if lane is None:
            return False
        try:
            lane.calls.remove(call)
        except ValueError:
            return False
        return True

    def _enter(self, lane: _Lane[Call]) -> None:
        self._entries += 1
        heapq.heappush(self._order, (lane.tag, self._entries, lane))
