"""Fair order, against what fairness means: shares by weight, order within a lane, nothing lost."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recollect_server.application.fair_queue import FairQueue

weights = st.integers(1, 20)
turns = st.integers(1, 1000)


def turn(queue: FairQueue[str], work: int, *, ended: bool = False) -> str | None:
    """One turn of whoever is next."""
    call = queue.take()
    if call is not None:
        queue.give_back(work, ended=ended)
    return call


@given(weights=st.tuples(weights, weights), works=st.lists(turns, min_size=1, max_size=300))
def test_shares_go_by_weight(weights: tuple[int, int], works: list[int]) -> None:
    """Of two tenants that always have work, one gets more than its weight for longer than a turn."""
    queue = FairQueue[str]()
    shares = dict(zip("ab", weights, strict=True))
    for tenant, weight in shares.items():
        queue.push(tenant, tenant, weight=weight)
    done = dict.fromkeys(shares, 0)
    for work in works:
        call = turn(queue, work)
        assert call is not None
        done[call] += work
        # In work by weight, neither is ahead by more than its own last turn.
        ahead = done["a"] / shares["a"] - done["b"] / shares["b"]
        largest = max(works)
        assert -largest / shares["b"] - 1e-3 <= ahead <= largest / shares["a"] + 1e-3


@given(
    weights=st.tuples(weights, weights),
    lanes=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    works=st.lists(turns, min_size=1, max_size=300),
)
def test_lanes_share_their_tenants_share(
    weights: tuple[int, int], lanes: tuple[int, int], works: list[int]
) -> None:
    """A tenant gets more of the device by spreading its work over lanes, or one lane starves another."""
    queue = FairQueue[tuple[str, str]]()
    shares, spread = dict(zip("ab", weights, strict=True)), dict(zip("ab", lanes, strict=True))
    done = {(tenant, str(lane)): 0 for tenant in "ab" for lane in range(spread[tenant])}
    for tenant, lane in done:
        queue.push(tenant, (tenant, lane), lane=lane, weight=shares[tenant])
    for work in works:
        call = queue.take()
        assert call is not None
        queue.give_back(work, ended=False)
        done[call] += work
        a, b = (sum(n for (whose, _), n in done.items() if whose == t) / shares[t] for t in "ab")
        largest = max(works)
        assert -largest / shares["b"] - 1e-3 <= a - b <= largest / shares["a"] + 1e-3
        for tenant in "ab":
            parts = [n for (whose, _), n in done.items() if whose == tenant]
            assert max(parts) - min(parts) <= largest


def test_an_add_passes_the_long_search_of_another_lane() -> None:
    """What a tenant asks of one namespace waits until all that it asked of another is done."""
    queue = FairQueue[str]()
    for number in range(3):
        queue.push("t", f"search {number}", lane="one")
    assert queue.take() == "search 0"
    queue.push("t", "add", lane="two")
    queue.push("t", "add after it", lane="two")
    queue.give_back(1_000_000, ended=False)
    assert queue.take() == "add"
    queue.give_back(10, ended=True)
    assert queue.take() == "add after it"
    queue.give_back(10, ended=False)
    assert queue.take() == "add after it"
    queue.give_back(2_000_000, ended=True)
    assert queue.take() == "search 0"
    queue.give_back(1, ended=True)


events = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.sampled_from(["a", "b", "c/x", "c/y", "d/x"]), st.integers(1, 5)),
        st.tuples(st.just("turn"), st.booleans(), turns),
        st.tuples(st.just("remove"), st.sampled_from(["a", "b", "c/x", "c/y", "d/x"]), st.integers(0, 5)),
    ),
    max_size=120,
)


def lane_of(who: str) -> tuple[str, str]:
    """Tenant and lane."""
    tenant, _, lane = who.partition("/")
    return tenant, lane


@given(fair=st.booleans(), events=events)
def test_nothing_is_lost_and_order_holds(
    fair: bool, events: list[tuple[str, str, int] | tuple[str, bool, int]]
) -> None:
    """A call is lost, done twice, or overtakes an earlier one of its lane (unfair: of anybody)."""
    queue, waiting, number = FairQueue[tuple[str, int]](fair=fair), defaultdict[str, list[int]](list), 0
    for what, who, size in events:
        if what == "push":
            assert isinstance(who, str)
            number += 1
            tenant, lane = lane_of(who)
            queue.push(tenant, (who, number), lane=lane, weight=size)
            waiting[who if fair else ""].append(number)
        elif what == "turn":
            call = queue.take()
            assert (call is None) == (not any(waiting.values()))
            if call is not None:
                line = waiting[call[0] if fair else ""]
                assert call[1] == line[0]
                queue.give_back(size, ended=bool(who))
                if who:
                    line.pop(0)
        else:
            line = waiting[str(who) if fair else ""]
            if len(line) > size:
                chosen = line.pop(size)
                owners = [str(who)] if fair else ["a", "b", "c/x", "c/y", "d/x"]
                removed = [
                    queue.remove(lane_of(owner)[0], (owner, chosen), lane=lane_of(owner)[1])
                    for owner in (*owners, *owners)
                ]
                assert removed.count(True) == 1
    while any(waiting.values()):
        call = queue.take()
        assert call is not None
        assert call[1] == waiting[call[0] if fair else ""].pop(0)
        queue.give_back(1, ended=True)
    assert queue.take() is None
    assert queue.tenants == 0


@given(newcomer=st.integers(1, 200), works=st.lists(turns, min_size=1, max_size=100))
def test_who_comes_anew_is_next_and_no_more(newcomer: int, works: list[int]) -> None:
    """A small call waits behind a flood, or having been idle lets a tenant keep the device to itself."""
    queue = FairQueue[str]()
    for flood in ("a", "b", "c"):
        queue.push(flood, flood)
    for work in works:
        turn(queue, work)
    queue.push("new", "new")
    waited = [turn(queue, 1000) for _ in range(4)]
    assert "new" in waited
    in_a_row = 0
    while turn(queue, newcomer) == "new":
        in_a_row += 1
    assert in_a_row * newcomer <= 2 * max(1000, *works) + newcomer


def test_a_small_call_goes_before_the_flood() -> None:
    """A tenant that has just come waits for more than the turn that is under way."""
    queue = FairQueue[str]()
    queue.push("flood", "heavy")
    queue.push("flood", "heavy too")
    assert queue.take() == "heavy"
    queue.push("small", "light")
    queue.give_back(1_000_000, ended=False)
    assert queue.take() == "light"
    queue.give_back(10, ended=True)
    assert queue.take() == "heavy"


def test_coming_and_going_pays_off_nothing() -> None:
    """A tenant that leaves the queue after each call counts as new each time, and gets too much."""
    queue, done = FairQueue[str](), defaultdict[str, int](int)
    queue.push("steady", "steady")
    queue.push("leaps", "leaps")
    for _ in range(1000):
        call = queue.take()
        assert call is not None
        work = 50 if call == "steady" else 400
        done[call] += work
        queue.give_back(work, ended=call == "leaps")
        if call == "leaps":
            queue.push("leaps", "leaps")
    assert abs(done["steady"] - done["leaps"]) <= 800


def test_small_steps_count_beside_large_sums() -> None:
    """Steps that are small beside the sum are lost in rounding, and a tenant's tag stands still."""
    queue = FairQueue[str]()
    queue.push("old", "old")
    for _ in range(1000):
        turn(queue, 10**15)
    queue.push("a", "a", weight=2**53)
    queue.push("b", "b", weight=2**52)
    taken = [turn(queue, 10**6) for _ in range(300)]
    assert 199 <= taken.count("a") <= 201


def test_tenants_that_are_gone_are_forgotten() -> None:
    """Ten thousand tenants with one call each stay in memory."""
    queue = FairQueue[int]()
    for number in range(10_000):
        queue.push(str(number), number)
    assert [queue.take() for _ in range(1)] == [0]
    queue.give_back(5, ended=True)
    for number in range(1, 10_000):
        assert queue.take() == number
        queue.give_back(5, ended=True)
    assert queue.take() is None
    assert queue.tenants == 0


def test_one_idle_tenant_among_busy_ones_is_forgotten() -> None:
    """A tenant without calls is kept though its tag is long past."""
    queue = FairQueue[str]()
    queue.push("busy", "busy")
    queue.push("idle", "idle")
    for _ in range(2):
        call = queue.take()
        queue.give_back(10, ended=call == "idle")
    assert queue.tenants == 2
    turn(queue, 10)
    turn(queue, 10)
    assert queue.tenants == 1


def test_a_turn_is_ended_once() -> None:
    """Work is charged to whoever came before."""
    with pytest.raises(RuntimeError):
        FairQueue[str]().give_back(1, ended=True)
