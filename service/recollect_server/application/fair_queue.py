"""Whose turn it is: weighted fair order among tenants, and within one among its lanes.

Start-time fair queueing, twice. Each tenant has a tag: the virtual time at which its next turn begins. A turn
moves the tag on by the work that was done, divided by the tenant's weight; the smallest tag is next, and
is the virtual time then. A tenant that comes anew begins at the present virtual time, so having been idle
earns it nothing; one that comes back soon keeps its tag, so pausing between calls pays off nothing. A
tenant's turn goes to one of its lanes in the same way, each of the same weight; within a lane, first come
first served.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

Call = TypeVar("Call")

TAG_UNIT = 2**40
"""Tags are whole numbers, which never lose a small step beside a large sum; this is their precision."""


class _Waits(Protocol):
    """What takes turns."""

    tag: int
    weight: int

    @property
    def name(self) -> str: ...

    @property
    def has_calls(self) -> bool: ...


Member = TypeVar("Member", bound=_Waits)


class _Order(Generic[Member]):
    """Members by tag; one without calls is forgotten as soon as the virtual time has reached its tag."""

    __slots__ = ("_entries", "_heap", "_virtual_time", "members")

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        # One entry for each member but the one that has its turn; the number breaks ties by age.
        self._heap: list[tuple[int, int, Member]] = []
        self._entries = 0
        self._virtual_time = 0

    def member(self, name: str, make: Callable[[str, int], Member]) -> Member:
        """The one of this name, made with the present virtual time for its tag if there is none."""
        member = self.members.get(name)
        if member is None:
            member = self.members[name] = make(name, self._virtual_time)
            self._enter(member)
        return member

    def take(self) -> Member | None:
        """Whose turn it is; out of the order until `give_back`."""
        while self._heap:
            tag, _, member = heapq.heappop(self._heap)
            self._virtual_time = tag
            if member.has_calls:
                return member
            del self.members[member.name]
        return None

    def give_back(self, member: Member, work: int) -> None:
        """Ends the member's turn, in which so much work was done."""
        member.tag += work * TAG_UNIT // member.weight
        self._enter(member)

    def _enter(self, member: Member) -> None:
        self._entries += 1
        heapq.heappush(self._heap, (member.tag, self._entries, member))


class _Lane(Generic[Call]):
    """Calls in the order they came, the one that has begun first."""

    __slots__ = ("calls", "name", "tag", "weight")

    def __init__(self, name: str, tag: int) -> None:
        self.name = name
        self.tag = tag
        self.weight = 1
        self.calls: deque[Call] = deque()

    @property
    def has_calls(self) -> bool:
        return bool(self.calls)


class _Tenant(Generic[Call]):
    """A tenant's lanes."""

    __slots__ = ("calls", "lanes", "name", "tag", "weight")

    def __init__(self, name: str, tag: int) -> None:
        self.name = name
        self.tag = tag
        self.weight = 1
        self.calls = 0
        self.lanes: _Order[_Lane[Call]] = _Order()

    @property
    def has_calls(self) -> bool:
        return self.calls > 0


class FairQueue(Generic[Call]):
    """Calls that wait or are paused. No threads, no clock, no idea of what a call is.

    A turn is `take`, then `give_back`. Both take O(log tenants + log lanes), and a tenant or a lane without
    calls is forgotten as soon as the virtual time has reached its tag.

    Args:
        fair: False puts all into one line, first come first served.
    """

    def __init__(self, *, fair: bool = True) -> None:
        self._fair = fair
        self._tenants: _Order[_Tenant[Call]] = _Order()
        self._current: tuple[_Tenant[Call], _Lane[Call]] | None = None

    @property
    def tenants(self) -> int:
        """How many are remembered."""
        return len(self._tenants.members)

    def push(self, tenant: str, call: Call, *, lane: str = "", weight: int | None = None) -> None:
        """Queues a call behind the others of its lane.

        Args:
            tenant: Whose it is.
            call: What `take` returns when its turn comes.
            lane: Of the tenant: calls of one lane run in order, one at a time.
            weight: Of the tenant, from now on: its share beside that of others. None: as it is, 1 at first.
        """
        share = self._tenants.member(tenant if self._fair else "", _Tenant)
        share.weight = weight or share.weight
        share.calls += 1
        share.lanes.member(lane if self._fair else "", _Lane).calls.append(call)

    def take(self) -> Call | None:
        """The call whose turn it is, or None if there is none. It keeps its place until `give_back`."""
        tenant = self._tenants.take()
        lane = None if tenant is None else tenant.lanes.take()
        if tenant is None or lane is None:
            return None
        self._current = tenant, lane
        return lane.calls[0]

    def give_back(self, work: int, *, ended: bool) -> None:
        """Ends the turn of the call that `take` returned.

        Args:
            work: That was done for it in this turn, in any unit.
            ended: It needs no other turn; otherwise it is its lane's next again.
        """
        if self._current is None:
            raise RuntimeError("there was no turn to end")
        (tenant, lane), self._current = self._current, None
        if ended:
            lane.calls.popleft()
            tenant.calls -= 1
        tenant.lanes.give_back(lane, work)
        self._tenants.give_back(tenant, work)

    def remove(self, tenant: str, call: Call, *, lane: str = "") -> bool:
        """Takes out a call that has not had a turn; False if it is not there."""
        share = self._tenants.members.get(tenant if self._fair else "")
        found = None if share is None else share.lanes.members.get(lane if self._fair else "")
        if share is None or found is None:
            return False
        try:
            found.calls.remove(call)
        except ValueError:
            return False
        share.calls -= 1
        return True
