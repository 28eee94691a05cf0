"""Background work of banks, such as keeping an index: queued after the calls that make it necessary."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from recollect_server.application.commands import Add, Attend, Command, Namespace, Search
from recollect_server.application.debt import IDLE_S, SLICE_S, Debt
from recollect_server.application.dispatch import Dispatcher, Job
from recollect_server.application.memories import Memories
from recollect_server.domain.bank import Bank
from recollect_server.domain.errors import DrainingError
from recollect_server.domain.spec import IndexChoice
from recollect_server.domain.steps import Steps
from recollect_server.domain.telemetry import Telemetry

log = logging.getLogger(__name__)

BRIEF = 100_000_000
"""Multiply-adds: what takes more is not done where calls come in, however fast the device: as training."""

LONG_MAX = 4
"""So many that are long are queued at once, at most: a call of another tenant may wait for all of them."""

FAILED_REST_S = 60.0
"""A bank whose work failed is left alone for so long."""

Key = tuple[str, str, int]
"""Of a bank: its namespace's uid, its stream and its layer."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A bank by name: it may be gone when its turn comes."""

    namespace: Namespace
    stream: str
    layer: int

    @property
    def key(self) -> Key:
        return self.namespace.record.uid, self.stream, self.layer

    @property
    def tenant(self) -> str:
        return self.namespace.record.tenant


@dataclass(slots=True)
class _Share:
    """The banks of one tenant that wait; one has its turn at a time.

    They take turns, but one of those with long work has every other: where a hundred have lists to make,
    the first are there soon, and not all at the end.
    """

    brief: dict[Key, _Place] = field(default_factory=dict)  # these first
    long: dict[Key, _Place] = field(default_factory=dict)
    at_work: _Place | None = None
    favoured: Key | None = None
    is_favoureds_turn: bool = False

    def enter(self, place: _Place, work: int) -> None:
        """As the last, if there is anything to do."""
        if work:
            (self.brief if work <= BRIEF else self.long)[place.key] = place

    def take_brief(self) -> _Place:
        """Whose turn it is."""
        return self.brief.pop(next(iter(self.brief)))

    def take_long(self) -> _Place:
        """Whose turn it is."""
        first = next(iter(self.long))
        self.is_favoureds_turn = not self.is_favoureds_turn
        if self.favoured not in self.long:
            self.favoured = first
        return self.long.pop(self.favoured if self.is_favoureds_turn else first)

    def knows(self, place: _Place) -> bool:
        return place.key in self.brief or place.key in self.long or place == self.at_work


class Upkeep:
    """Gives background work its turns, in the lane of its namespace: so it runs beside none of its calls.

    What is brief, such as putting what a call added into lists, is done soon. What is long waits until calls
    have had their share (`Debt`), and then the tenants take turns, a slice each. A tenant has one job queued
    at a time, so that none waits behind another's calls, and a call waits for one slice and not for all.

    Call it on the event loop.

    Args:
        memories: Of the device.
        dispatcher: Of the device.
        telemetry: Told of recall.
    """

    def __init__(self, memories: Memories, dispatcher: Dispatcher, *, telemetry: Telemetry) -> None:
        self._memories = memories
        self._dispatcher = dispatcher
        self._telemetry = telemetry
        self._shares: dict[str, _Share] = {}  # by tenant, in the order of their turns
        self._debt = Debt()
        self._long = 0  # jobs that are queued or under way
        self._looks_again = False
        self._rests_until_s: dict[Key, float] = {}  # where it failed

    def after(self, namespace: Namespace, command: Command, seconds: float) -> None:
        """Queues what a call that has been answered, in so many seconds of work, made necessary."""
        self._debt.called(seconds)
        exact = namespace.record.spec.index is IndexChoice.EXACT
        if not exact and isinstance(command, Add | Search | Attend):
            share = self._shares.setdefault(namespace.record.tenant, _Share())
            for stream in command.streams:
                place = _Place(namespace, stream, command.layer)
                bank = self._bank(place)
                if bank is None:
                    continue
                self._tell_recall(namespace, bank)
                if not share.knows(place) and not self._rests(place):
                    share.enter(place, bank.upkeep_work)
            self._go_on(namespace.record.tenant)
        self._take_turns()

    def _rests(self, place: _Place) -> bool:
        until_s = self._rests_until_s.get(place.key)
        if until_s is None:
            return False
        if time.monotonic() < until_s:
            return True
        del self._rests_until_s[place.key]
        return False

    def _go_on(self, tenant: str) -> None:
        """The tenant's next bank with something brief to do has its turn, unless another has it."""
        share = self._shares[tenant]
        while share.brief and share.at_work is None:
            self._begin(share, share.take_brief(), is_brief=True)
        if not (share.brief or share.long or share.at_work):
            del self._shares[tenant]

    def _take_turns(self) -> None:
        """The next tenants have theirs, if calls have had theirs."""
        for tenant, share in list(self._shares.items()):
            if share.at_work is not None or not share.long:
                continue
            if self._debt.is_idle and self._dispatcher.is_idle:
                self._debt.forgive()  # one slice after the other, then
            if self._long >= LONG_MAX or not self._debt.is_due():
                break
            self._shares[tenant] = self._shares.pop(tenant)  # the last one now
            while share.long and share.at_work is None:
                self._begin(share, share.take_long(), is_brief=False)
            self._go_on(tenant)
        if not self._looks_again and any(share.long for share in self._shares.values()):
            self._looks_again = True
            asyncio.get_running_loop().call_later(IDLE_S, self._look)

    def _look(self) -> None:
        """Once the device may be idle; a call that comes before then looks, too."""
        self._looks_again = False
        self._take_turns()

    def _begin(self, share: _Share, place: _Place, *, is_brief: bool) -> None:
        """A bank has its turn, if there is anything to do still."""
        bank = self._bank(place)
        work = 0 if bank is None else bank.upkeep_work
        if work > BRIEF and is_brief:
            share.enter(place, work)  # it has become more
        elif work:
            self._submit(share, place, work=work)

    def _submit(self, share: _Share, place: _Place, *, work: int) -> None:
        """What is brief is done at once, if the device is idle: see `Dispatcher`."""
        slice_s = SLICE_S if work <= BRIEF else self._debt.slice_s
        job = Job(
            place.tenant,
            self._steps(place, slice_s),
            cost=work,
            weight=place.namespace.quotas.weight,
            is_refusable=False,
            may_run_here=work <= BRIEF,
            lane=place.namespace.record.name,
        )
        loop = asyncio.get_running_loop()
        with contextlib.suppress(DrainingError):
            future = self._dispatcher.submit(job)
            share.at_work = place
            expected_s = slice_s if work > BRIEF else 0.0
            self._debt.worked(expected_s)
            self._long += work > BRIEF
            future.add_done_callback(partial(self._tell, loop, place, job, expected_s))

    def _steps(self, place: _Place, seconds: float) -> Steps[bool]:
        """Whether there is more to do."""
        bank = self._bank(place)
        if bank is None:
            yield 0
            return False
        return (yield from bank.upkeep(seconds=seconds))

    def _bank(self, place: _Place) -> Bank | None:
        memory = self._memories.peek(place.namespace.record)
        return None if memory is None else memory.bank(place.stream, place.layer, missing_ok=True)

    def _tell(
        self,
        loop: asyncio.AbstractEventLoop,
        place: _Place,
        job: Job[bool],
        expected_s: float,
        future: Future[bool],
    ) -> None:
        """From the thread that did the work. A loop that is closed has nobody to tell."""
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._ended, place, job.worked_s or 0.0, expected_s, future)

    def _ended(self, place: _Place, seconds: float, expected_s: float, future: Future[bool]) -> None:
        share = self._shares[place.tenant]
        share.at_work = None
        self._debt.worked(seconds - expected_s)
        if expected_s:
            self._long -= 1
        error = future.exception()
        if error is not None:
            log.error("upkeep of an index failed; exact search goes on", exc_info=error)
            # A defect, then, which the next call would only meet again.
            now_s = time.monotonic()
            resting = {key: until_s for key, until_s in self._rests_until_s.items() if until_s > now_s}
            self._rests_until_s = {**resting, place.key: now_s + FAILED_REST_S}
        else:
            bank = self._bank(place)
            if bank is not None:
                self._tell_recall(place.namespace, bank)
                share.enter(place, bank.upkeep_work if future.result() else 0)
        self._go_on(place.tenant)
        self._take_turns()

    def _tell_recall(self, namespace: Namespace, bank: Bank) -> None:
        queries, recall = bank.untold_recall()
        if queries:
            self._telemetry.recall_sampled(namespace.record.tenant, recall, queries=queries)
