"""Who may begin a call: rates, calls in flight, and bytes in flight, per tenant and in all."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest

from recollect_server.application.admission import TENANTS_REMEMBERED, Admission
from recollect_server.domain.errors import OverloadedError, QuotaExceededError
from recollect_server.domain.limits import Limits
from recollect_server.domain.tenants import Quotas


class Bench:
    """Admission on a clock that the test moves."""

    def __init__(self, **limits: int) -> None:
        self.now_s = 0.0
        self.admission = Admission(Limits(**limits), monotonic=lambda: self.now_s)

    def begins(self, tenant: str, quotas: Quotas) -> bool:
        """Whether a call, which ends at once, is let in."""
        try:
            with self.admission.begin(tenant, quotas):
                return True
        except QuotaExceededError:
            return False


def test_a_rate_is_held_over_any_second() -> None:
    """A tenant calls more often than it may, or less often than it may."""
    bench, quotas = Bench(), Quotas(calls_per_second=10)
    assert sum(bench.begins("a", quotas) for _ in range(50)) == 10
    let_in = 0
    for _ in range(80):
        bench.now_s += 0.0625
        let_in += sum(bench.begins("a", quotas) for _ in range(3))
    assert let_in == 50  # five seconds at ten a second


def test_a_refusal_says_when() -> None:
    """A refused caller is not told when to come back, or too early."""
    bench, quotas = Bench(), Quotas(calls_per_second=2)
    for _ in range(2):
        assert bench.begins("a", quotas)
    with pytest.raises(QuotaExceededError) as caught, bench.admission.begin("a", quotas):
        pass
    assert caught.value.reason == "QUOTA_CALLS_PER_SECOND"
    assert caught.value.retry_after_s is not None
    bench.now_s += caught.value.retry_after_s
    assert bench.begins("a", quotas)


def test_one_tenants_rate_is_its_own() -> None:
    """A tenant that used up its calls takes another's."""
    bench, quotas = Bench(), Quotas(calls_per_second=1)
    assert bench.begins("a", quotas)
    assert not bench.begins("a", quotas)
    assert bench.begins("b", quotas)


def test_calls_in_flight_are_counted_out_also_when_they_fail() -> None:
    """A call that failed takes a place for ever."""
    bench, quotas = Bench(), Quotas(calls_in_flight_max=2)
    for _ in range(10):
        with pytest.raises(ZeroDivisionError), bench.admission.begin("a", quotas):
            raise ZeroDivisionError
    with ExitStack() as under_way:
        for _ in range(2):
            under_way.enter_context(bench.admission.begin("a", quotas))
        with pytest.raises(QuotaExceededError) as caught, bench.admission.begin("a", quotas):
            pass
        assert caught.value.reason == "QUOTA_CALLS_IN_FLIGHT"
        assert bench.begins("b", quotas)
    assert bench.begins("a", quotas)


def test_bytes_in_flight_are_bounded_and_given_back() -> None:
    """Messages pile up beyond the quota, or bytes of a refused message stay counted."""
    bench, quotas = Bench(), Quotas(bytes_in_flight_max=100)
    for _ in range(3):
        with bench.admission.begin("a", quotas) as first:
            first.holds(60)
            with (
                pytest.raises(QuotaExceededError) as caught,
                bench.admission.begin("a", quotas) as second,
            ):
                second.holds(60)
            assert caught.value.reason == "QUOTA_BYTES_IN_FLIGHT"
            with bench.admission.begin("a", quotas) as third:
                third.holds(40)


def test_all_tenants_together_are_bounded() -> None:
    """Many tenants, each within its quota, take the server down."""
    bench, quotas = Bench(calls_in_flight_max=3, bytes_in_flight_max=100), Quotas()
    with ExitStack() as under_way:
        for tenant in "abc":
            under_way.enter_context(bench.admission.begin(tenant, quotas)).holds(30)
        with pytest.raises(OverloadedError), bench.admission.begin("d", quotas):
            pass
    with bench.admission.begin("a", quotas) as large, pytest.raises(OverloadedError):
        large.holds(101)


def test_idle_tenants_are_forgotten() -> None:
    """Memory grows with every tenant that ever called."""
    bench, quotas = Bench(), Quotas()
    for number in range(3 * TENANTS_REMEMBERED):
        bench.now_s += 0.01
        assert bench.begins(f"t{number}", quotas)
    assert bench.admission.tenants <= TENANTS_REMEMBERED + 1


MESSAGE, ROOM = 100, 350
"""Bytes of the largest message, and those of a tenant in flight: room for three such."""


class Receiver:
    """Calls of one tenant that receive their messages when the test says so."""

    def __init__(self) -> None:
        self.bench = Bench(message_bytes_max=MESSAGE)
        self.quotas = Quotas(bytes_in_flight_max=ROOM)
        self.receiving = 0
        self.received: asyncio.Event = asyncio.Event()

    async def call(self, *, size: int, tenant: str = "a") -> None:
        """Receives a message of so many bytes once `received` is set."""
        with self.bench.admission.begin(tenant, self.quotas) as admitted:
            async with admitted.receiving():
                self.receiving += 1
                try:
                    await self.received.wait()
                finally:
                    self.receiving -= 1
                admitted.holds(size)

    async def begin(self, calls: int, *, tenant: str = "a") -> list[asyncio.Task[None]]:
        """Starts calls, and lets them come as far as they can."""
        tasks = [asyncio.create_task(self.call(size=10, tenant=tenant)) for _ in range(calls)]
        await settled()
        return tasks


async def settled() -> None:
    """Lets all tasks run until they wait."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_no_more_is_received_than_a_tenant_may_hold() -> None:
    """A tenant has the server hold its calls in flight times the largest message, before they are counted."""
    receiver = Receiver()
    tasks = await receiver.begin(10)
    assert receiver.receiving == 3
    others = await receiver.begin(2, tenant="b")
    assert receiver.receiving == 5  # it keeps nobody else waiting
    receiver.received.set()
    await asyncio.gather(*tasks, *others)


async def test_who_gives_up_makes_room() -> None:
    """Callers that hang up while they send, or while they wait to, leave the tenant less and less room."""
    receiver = Receiver()
    tasks = await receiver.begin(8)
    for number in (1, 5, 3, 4):  # one that receives, and some that wait
        tasks[number].cancel()
    await settled()
    assert receiver.receiving == 3
    for task in tasks[:3]:
        task.cancel()
    await settled()
    assert receiver.receiving == 2  # the last two
    receiver.received.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    again = await receiver.begin(3)
    await asyncio.gather(*again)
    assert receiver.bench.admission._accounts["a"].receiving == 0
    assert receiver.bench.admission._accounts["a"].bytes == 0


async def test_who_gave_up_waits_no_more() -> None:
    """Callers that hang up while they wait each leave something behind, as long as there is no room."""
    receiver = Receiver()
    tasks = await receiver.begin(3)
    for _ in range(5):
        leaving = await receiver.begin(20)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
    assert not receiver.bench.admission._accounts["a"].waiting
    receiver.received.set()
    await asyncio.gather(*tasks)


async def test_a_turn_that_comes_to_a_caller_who_leaves_goes_on() -> None:
    """A place to receive is lost when its turn and the leaving coincide: in the end nobody has one."""
    receiver = Receiver()
    tasks = await receiver.begin(5)
    tasks[0].cancel()
    await asyncio.sleep(0)  # the place goes to the fourth, which has not run yet
    tasks[3].cancel()
    await settled()
    assert receiver.receiving == 3
    receiver.received.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert receiver.bench.admission._accounts["a"].receiving == 0


def test_answers_that_are_held_count_too() -> None:
    """Answers in chunks are held beyond the quota, or a small quota lets nobody read any."""
    bench, quotas = Bench(), Quotas(bytes_in_flight_max=100)
    with bench.admission.begin("a", quotas) as first:
        first.holds(10)
        first.holds_answer(500)  # one at a time, whatever the quota
        with bench.admission.begin("a", quotas) as second:
            with pytest.raises(QuotaExceededError) as caught:
                second.holds(10)
            assert caught.value.reason == "QUOTA_BYTES_IN_FLIGHT"
    with bench.admission.begin("a", quotas) as third, bench.admission.begin("a", quotas) as fourth:
        third.holds(40)
        fourth.holds(10)
        with pytest.raises(QuotaExceededError):
            fourth.holds_answer(60)
    with bench.admission.begin("a", quotas) as last:
        last.holds(100)


def test_answers_count_for_the_server() -> None:
    """Many tenants' answers together fill the server's memory."""
    bench, quotas = Bench(bytes_in_flight_max=100), Quotas()
    with bench.admission.begin("a", quotas) as first, bench.admission.begin("b", quotas) as second:
        first.holds_answer(60)
        with pytest.raises(OverloadedError):
            second.holds_answer(60)
