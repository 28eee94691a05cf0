"""Records of the registry that this server remembers, and when it may still believe them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import asynccontextmanager
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from recollect_server.domain.errors import RegistryUnavailableError
from recollect_server.domain.telemetry import Telemetry

Name = TypeVar("Name", bound=Hashable)
Record = TypeVar("Record")

RECENT_S = 1.0
"""What was not confirmed for so long is read again."""

KNOWN_READS_MAX, UNKNOWN_READS_MAX = 24, 8
"""Reads in flight. Names that are not known have their own, so that a flood of them delays nobody else."""

UNKNOWN_WAITING_MAX = 1024
"""Reads of such names that wait."""

ABSENT_MAX = 4096
"""Names remembered as absent; apart from the records, which no flood of made-up names can push out."""

RENEWED_MAX = 1024
"""Records that are read again, the last used first, after something changed."""

NOT_ASKED = "the registry was not asked yet"

RENEWAL_PAUSE_S = 0.001
RETRY_AFTER_S = 1.0


class RegistryView:
    """What this server knows about the registry: the version last seen, when, and whether it answers.

    Args:
        monotonic: Seconds.
        stale_max_s: For how long after the last poll records are believed while the registry is away.
        telemetry: Is told of every use of such a record.
    """

    def __init__(self, monotonic: Callable[[], float], *, stale_max_s: float, telemetry: Telemetry) -> None:
        self.generation = 0
        self.unavailable_reason = NOT_ASKED
        self._monotonic = monotonic
        self._polled_at_s = float("-inf")
        self._version: str | None = None
        self._stale_max_s = stale_max_s
        self._telemetry = telemetry
        self._known_reads = asyncio.Semaphore(KNOWN_READS_MAX)
        self._unknown_reads = asyncio.Semaphore(UNKNOWN_READS_MAX)
        self._unknown_waiting = 0

    def confirm(self, version: str, asked_at_s: float) -> bool:
        """Takes the answer to a poll; True if the version is a new one."""
        changed = version != self._version
        if changed:
            self._version = version
            self.generation += 1
        self._polled_at_s = asked_at_s
        self.unavailable_reason = ""
        return changed

    def is_recent(self) -> bool:
        """Whether the version was confirmed within the last second."""
        return self._monotonic() - self._polled_at_s <= RECENT_S

    def fall_back(self, generation: int | None) -> None:
        """Lets a record of this generation be used without asking, or refuses it.

        One that may have changed is refused: a key that was revoked a moment before the registry went away
        stays revoked.

        Raises:
            RegistryUnavailableError: There is none, it may have changed, or the last poll is too long ago.
        """
        age_s = self._monotonic() - self._polled_at_s
        if generation != self.generation or age_s > self._stale_max_s:
            raise unavailable()
        self._telemetry.fell_back("registry-cache")

    @asynccontextmanager
    async def turn(self, *, known: bool) -> AsyncIterator[None]:
        """Waits until a read may go out.

        Raises:
            RegistryUnavailableError: Too many are waiting.
        """
        if known:
            async with self._known_reads:
                yield
            return
        if self._unknown_waiting >= UNKNOWN_WAITING_MAX:
            raise unavailable()
        self._unknown_waiting += 1
        try:
            async with self._unknown_reads:
                yield
        finally:
            self._unknown_waiting -= 1


class _Entry(NamedTuple, Generic[Record]):
    record: Record | None
    generation: int


class _Read(NamedTuple, Generic[Record]):
    answer: asyncio.Future[Record | None]
    generation: int


class RecordCache(Generic[Name, Record]):
    """The records of one kind, by name. What the registry does not have is remembered too.

    Args:
        fetch: Reads one from the registry.
        view: Of that registry.
        cached_max: Records remembered; the one unused for longest makes room.
    """

    def __init__(
        self, fetch: Callable[[Name], Awaitable[Record | None]], view: RegistryView, *, cached_max: int
    ) -> None:
        self._fetch = fetch
        self._view = view
        self._cached_max = cached_max
        self._known: OrderedDict[Name, _Entry[Record]] = OrderedDict()
        self._absent: OrderedDict[Name, _Entry[Record]] = OrderedDict()
        self._reads: dict[Name, _Read[Record]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def get(self, name: Name) -> Record | None:
        """The record, or None if the registry has none: without I/O while what is remembered is up to date.

        Raises:
            RegistryUnavailableError: The registry is away, and nothing that may be believed is remembered.
        """
        entry = self._known.get(name)
        if entry is not None:
            if entry.generation == self._view.generation and self._view.is_recent():
                self._known.move_to_end(name)
                return entry.record
        else:
            entry = self._absent.get(name)
            if entry is not None and entry.generation == self._view.generation and self._view.is_recent():
                return None
        if self._view.unavailable_reason:
            # Calls do not knock at a closed door: the watcher does, and it waits for nobody.
            return self._remembered(name)
        try:
            return await self._shared_read(name, known=entry is not None and entry.record is not None)
        except RegistryUnavailableError:
            return self._remembered(name)

    async def renew(self) -> None:
        """Reads again what may have changed, so that it can be believed if the registry goes away."""
        for name in list(islice(reversed(self._known), RENEWED_MAX)):
            entry = self._known.get(name)
            if entry is None or entry.generation == self._view.generation:
                continue
            if self._view.unavailable_reason:
                return
            try:
                await self._shared_read(name, known=True)
            except RegistryUnavailableError:
                return
            await asyncio.sleep(RENEWAL_PAUSE_S)

    def give_up(self) -> None:
        """Ends the wait for reads under way: the registry was found to be away."""
        for read in self._reads.values():
            if not read.answer.done():
                read.answer.set_exception(unavailable())
        self._reads.clear()

    async def stop(self) -> None:
        """Ends the reads under way."""
        self.give_up()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _remembered(self, name: Name) -> Record | None:
        entry = self._known.get(name) or self._absent.get(name)
        self._view.fall_back(None if entry is None else entry.generation)
        return None if entry is None else entry.record

    async def _shared_read(self, name: Name, *, known: bool) -> Record | None:
        read = self._reads.get(name)
        # A read that began before the last change that was seen may answer with what was there before it.
        if read is None or read.generation != self._view.generation:
            read = _Read(asyncio.get_running_loop().create_future(), self._view.generation)
            read.answer.add_done_callback(_retrieve)
            self._reads[name] = read
            task = asyncio.create_task(self._read(name, read, known=known))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(read.answer)  # one caller that leaves takes the answer from nobody

    async def _read(self, name: Name, read: _Read[Record], *, known: bool) -> None:
        try:
            async with self._view.turn(known=known):
                record = await self._fetch(name)
        except Exception as error:
            if not read.answer.done():
                read.answer.set_exception(error)
        else:
            self._remember(name, _Entry(record, read.generation))
            if not read.answer.done():
                read.answer.set_result(record)
        finally:
            if self._reads.get(name) is read:
                del self._reads[name]
            read.answer.cancel()  # does nothing unless this task was cancelled

    def _remember(self, name: Name, entry: _Entry[Record]) -> None:
        before = self._known.get(name) or self._absent.get(name)
        if before is not None and before.generation > entry.generation:
            return  # a later read was faster
        kept, other, most = self._known, self._absent, self._cached_max
        if entry.record is None:
            kept, other, most = self._absent, self._known, min(ABSENT_MAX, self._cached_max)
        other.pop(name, None)
        kept[name] = entry
        if len(kept) > most:
            kept.popitem(last=False)


def unavailable() -> RegistryUnavailableError:
    """The error for what cannot be told now. Callers need not know where the registry is and what ails it."""
    return RegistryUnavailableError(
        "tenants, keys and namespaces cannot be looked up now; try again", retry_after_s=RETRY_AFTER_S
    )


def _retrieve(answer: asyncio.Future[Record | None]) -> None:
    """Takes note of an exception that nobody may be left to take."""
    if not answer.cancelled():
        answer.exception()
