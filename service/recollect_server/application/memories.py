"""Which memory belongs to which namespace's record: made when first used, freed when the namespace goes."""

from __future__ import annotations

from collections import OrderedDict

from recollect_server.application.request_ids import AnsweredRequests
from recollect_server.domain.arrays import DenseArray, Float32
from recollect_server.domain.errors import NamespaceNotFoundError
from recollect_server.domain.limits import Limits
from recollect_server.domain.memory import NamespaceMemory
from recollect_server.domain.ports import Clock, Device
from recollect_server.domain.registry import NamespaceRecord
from recollect_server.domain.spec import Dtype
from recollect_server.domain.steps import Steps, kept, run_through
from recollect_server.domain.usage import Usage

SEQUENCES_PER_MS = 1024
"""A memory's first id is the time at which it was made, in ms, times this: so ids do not come back when the
namespace is made again, nor when the next process begins with it empty. A stream would have to take a million
entries a second to catch up."""

GONE_REMEMBERED = 65_536
"""Namespaces known to be gone, so that a call that was on its way when one went does not bring it back."""


class _Held:
    __slots__ = ("created_at_ms", "memory", "uid")

    def __init__(self, record: NamespaceRecord, memory: NamespaceMemory) -> None:
        self.uid = record.uid
        self.created_at_ms = record.created_at_ms
        self.memory = memory


class Memories:
    """The memories of all namespaces on one device.

    Not thread-safe but for what says so: the device's dispatcher owns it. What changes the memory of a
    namespace must run as a call of that namespace, since another of its calls may be paused. What belongs to
    a tenant as a whole (usage, answers) is read and changed within one step.

    Args:
        device: Where banks live.
        limits: The server's bounds.
        clock: Seconds since the epoch.

    Attributes:
        total: What is stored in all of them.
        answered: Answers to writes, forgotten with a tenant's last namespace.
    """

    def __init__(self, device: Device, *, limits: Limits, clock: Clock) -> None:
        self._device = device
        self._limits = limits
        self._clock = clock
        self._held: dict[tuple[str, str], _Held] = {}
        self._usages: dict[str, Usage] = {}
        self._namespaces: dict[str, int] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._sequence_floor = 0
        self.total = Usage()
        self.answered = AnsweredRequests(limits)

    def of(self, record: NamespaceRecord) -> NamespaceMemory:
        """The namespace's memory. One of an earlier namespace of the same name is cleared first.

        Raises:
            NamespaceNotFoundError: It is the record that is of an earlier one.
        """
        key = (record.tenant, record.name)
        held = self._held.get(key)
        if held is not None and held.uid == record.uid:
            return held.memory
        if record.uid in self._gone or (held is not None and record.created_at_ms < held.created_at_ms):
            raise NamespaceNotFoundError(
                f"there is no namespace {record.name!r}; create it first", argument="namespace"
            )
        if held is not None:
            run_through(self.drop(record.tenant, record.name, uid=held.uid))
        usage = self._usages.get(record.tenant)
        if usage is None:
            usage = self._usages[record.tenant] = Usage(self.total)
        memory = NamespaceMemory(
            record.name,
            record.spec,
            self._device,
            self._limits,
            first_sequence=self._first_sequence(record),
            usage=Usage(usage),
        )
        self._held[key] = _Held(record, memory)
        self._namespaces[record.tenant] = self._namespaces.get(record.tenant, 0) + 1
        return memory

    def narrowed(self, values: Float32, dtype: Dtype) -> DenseArray:
        """See `Device.narrowed`."""
        return self._device.narrowed(values, dtype)

    def peek(self, record: NamespaceRecord) -> NamespaceMemory | None:
        """The namespace's memory if there is one; from any thread, to look at and not to change."""
        held = self._held.get((record.tenant, record.name))
        return held.memory if held is not None and held.uid == record.uid else None

    def drop(self, tenant: str, name: str, *, uid: str) -> Steps[int]:
        """Frees a namespace's memory; its ids do not come back. Nobody finds it once that has begun.

        Args:
            tenant: Whose namespace it is.
            name: Its name.
            uid: Which namespace of that name. Another one, made since, is left alone.

        Returns:
            How many entries that were.
        """
        yield 0
        self._remember_gone(uid)
        held = self._held.get((tenant, name))
        if held is None or uid != held.uid:
            return 0
        del self._held[tenant, name]
        entries = held.memory.usage.entries
        yield from kept(held.memory.clear())
        self._sequence_floor = max(self._sequence_floor, held.memory.high_water)
        self._namespaces[tenant] -= 1
        if not self._namespaces[tenant]:
            del self._namespaces[tenant], self._usages[tenant]
            self.answered.forget(tenant)
        return entries

    def held(self) -> list[tuple[str, str, str]]:
        """Tenant, name and uid of each namespace that has a memory here; from any thread."""
        return [(tenant, name, held.uid) for (tenant, name), held in list(self._held.items())]

    def bytes_of(self, tenant: str, name: str) -> int:
        """What is allocated for a namespace here; from any thread, to look at."""
        held = self._held.get((tenant, name))
        return held.memory.usage.bytes if held is not None else 0

    def usage(self, tenant: str) -> Usage:
        """What a tenant stores here; from any thread, to look at."""
        return self._usages.get(tenant) or Usage()

    def _first_sequence(self, record: NamespaceRecord) -> int:
        made_at_ms = max(int(self._clock() * 1000), record.created_at_ms)
        return max(made_at_ms * SEQUENCES_PER_MS, self._sequence_floor)

    def _remember_gone(self, uid: str) -> None:
        self._gone[uid] = None
        if len(self._gone) > GONE_REMEMBERED:
            self._gone.popitem(last=False)
