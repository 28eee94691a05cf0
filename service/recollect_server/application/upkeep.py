"""Background work of banks, such as keeping an index: queued after the calls that make it necessary."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from recollect_server.application.commands import Add, Attend, Command, Namespace, Search
from recollect_server.application.debts import IDLE_S, Debts, Key
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

FAILED_REST_S = 60.0
"""A bank whose work failed is left alone for so long."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A bank by name: it may be gone when its turn comes."""

    namespace: Namespace
    stream: str
    layer: int

    @property
    def key(self) -> Key:
        return self.namespace.record.uid, self.stream, self.layer


class Upkeep:
    """Gives background work its turns, in the lane of its namespace: so it runs beside none of its calls.

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
        self._under_way: set[Key] = set()
        self._debts = Debts()
        self._looking: set[Key] = set()
        self._rests_until_s: dict[Key, float] = {}  # where it failed

    def after(self, namespace: Namespace, command: Command, seconds: float) -> None:
        """Queues what a call that has been answered, in so many seconds of work, made necessary."""
        exact = namespace.record.spec.index is IndexChoice.EXACT
        if exact or not isinstance(command, Add | Search | Attend):
            return
        for stream in command.streams:
            place = _Place(namespace, stream, command.layer)
            bank = self._bank(place)
            if bank is None:
                continue
            self._tell_recall(namespace, bank)
            self._debts.called(place.key, seconds / len(command.streams))
            if place.key not in self._under_way and not self._rests(place):
                self._queue(place, bank.upkeep_work)

    def _rests(self, place: _Place) -> bool:
        until_s = self._rests_until_s.get(place.key)
        if until_s is None:
            return False
        if time.monotonic() < until_s:
            return True
        del self._rests_until_s[place.key]
        return False

    def _queue(self, place: _Place, work: int) -> None:
        """What is brief is done at once, if the device is idle: see `Dispatcher`. The rest pays its debts."""
        if not work:
            self._debts.forgive(place.key)
            return
        if work > BRIEF and not self._debts.is_due(place.key):
            self._look_again(place)
            return
        job = Job(
            place.namespace.record.tenant,
            self._steps(place),
            cost=work,
            weight=place.namespace.quotas.weight,
            is_refusable=False,
            may_run_here=work <= BRIEF,
            lane=place.namespace.record.name,
        )
        loop = asyncio.get_running_loop()
        with contextlib.suppress(DrainingError):
            future = self._dispatcher.submit(job)
            self._under_way.add(place.key)
            future.add_done_callback(partial(self._tell, loop, place, job))

    def _steps(self, place: _Place) -> Steps[bool]:
        """Whether there is more to do."""
        bank = self._bank(place)
        if bank is None:
            yield 0
            return False
        return (yield from bank.upkeep())

    def _bank(self, place: _Place) -> Bank | None:
        memory = self._memories.peek(place.namespace.record)
        return None if memory is None else memory.bank(place.stream, place.layer, missing_ok=True)

    def _look_again(self, place: _Place) -> None:
        """Once the bank may be idle; a call that comes before then looks, too."""
        if place.key not in self._looking:
            self._looking.add(place.key)
            asyncio.get_running_loop().call_later(IDLE_S, self._look, place)

    def _look(self, place: _Place) -> None:
        self._looking.discard(place.key)
        bank = self._bank(place)
        if bank is None:
            self._debts.forgive(place.key)
        elif place.key not in self._under_way:
            self._queue(place, bank.upkeep_work)

    def _tell(
        self, loop: asyncio.AbstractEventLoop, place: _Place, job: Job[bool], future: Future[bool]
    ) -> None:
        """From the thread that did the work. A loop that is closed has nobody to tell."""
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._ended, place, job.worked_s or 0.0, future)

    def _ended(self, place: _Place, seconds: float, future: Future[bool]) -> None:
        self._under_way.discard(place.key)
        self._debts.worked(place.key, seconds)
        error = future.exception()
        if error is not None:
            log.error("upkeep of an index failed; exact search goes on", exc_info=error)
            # A defect, then, which the next call would only meet again.
            now_s = time.monotonic()
            resting = {key: until_s for key, until_s in self._rests_until_s.items() if until_s > now_s}
            self._rests_until_s = {**resting, place.key: now_s + FAILED_REST_S}
            self._debts.forgive(place.key)
            return
        bank = self._bank(place)
        if bank is not None:
            self._tell_recall(place.namespace, bank)
        self._queue(place, bank.upkeep_work if bank is not None and future.result() else 0)

    def _tell_recall(self, namespace: Namespace, bank: Bank) -> None:
        queries, recall = bank.untold_recall()
        if queries:
            self._telemetry.recall_sampled(namespace.record.tenant, recall, queries=queries)
