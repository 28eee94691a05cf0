"""Whose background work has its turn, where many have some: a call waits for little, and none for ever."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import Future
from typing import TypeVar, cast

import numpy as np
import pytest

from recollect_server.application import upkeep
from recollect_server.application.catalog import Catalog
from recollect_server.application.commands import Add, Namespace, Search
from recollect_server.application.dispatch import Dispatcher, Job
from recollect_server.application.turns import Times, Turns
from recollect_server.application.upkeep import LONG_MAX, Upkeep
from recollect_server.domain.arrays import from_float32
from recollect_server.domain.identity import Caller
from recollect_server.domain.registry import NamespaceRecord
from recollect_server.domain.spec import Dtype, IndexChoice, NamespaceSpec
from recollect_server.domain.telemetry import NoTelemetry
from recollect_server.domain.tenants import Quotas
from recollect_server.engine import kernels, reasons
from recollect_server.engine import upkeep as engine_upkeep
from tests.unit.server.gate import Gate
from tests.unit.server.shaky_registry import until
from tests.unit.server.use_cases import Server

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels were not compiled")

DIM, ENTRIES = 8, 1100
SPEC = NamespaceSpec(
    layers=(0,),
    heads=1,
    key_dim=DIM,
    value_dim=DIM,
    capacity=2 * ENTRIES,
    dtype=Dtype.FLOAT32,
    index=IndexChoice.IVF,
    recall=0.9,
)
TURNS_MAX = 10_000
Answer = TypeVar("Answer")


class Watching(Dispatcher):
    """Counts the background jobs of each tenant that are queued or under way."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.limits)
        self.under_way: Counter[str] = Counter()
        self.all: Counter[str] = Counter()  # since they began
        self.most_of_one = self.most = 0

    def submit(self, job: Job[Answer]) -> Future[Answer]:
        if job.is_refusable:
            return super().submit(job)
        self.under_way[job.tenant] += 1
        self.all[job.tenant] += 1
        self.most_of_one = max(self.most_of_one, *self.under_way.values())
        self.most = max(self.most, self.under_way.total())
        future = super().submit(job)
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._ended, job.tenant))
        return future

    def _ended(self, tenant: str) -> None:
        self.under_way[tenant] -= 1


class Spaces:
    """Namespaces "tenant/name" with one stream each, and who calls them."""

    def __init__(self, *names: str) -> None:
        self.server, self.rng = Server(), np.random.default_rng(0)
        self.names = names
        self.dispatcher = Watching(self.server)
        self.upkeep = Upkeep(self.server.memories, self.dispatcher, telemetry=NoTelemetry())
        self.turns = Turns(
            cast("Catalog", self), self.server.memory, dispatcher=self.dispatcher, upkeep=self.upkeep
        )

    async def get(self, caller: Caller, name: str) -> Namespace:
        """As the catalog finds it."""
        uid = f"{caller.tenant}/{name}"
        return Namespace(NamespaceRecord(caller.tenant, name, SPEC, created_at_ms=1, uid=uid), Quotas())

    async def fill(self) -> None:
        """All of them."""
        for uid in self.names:
            tenant, name = uid.split("/")
            keys = from_float32(self._draw(ENTRIES), Dtype.FLOAT32)
            command = Add(name, 0, ("s",), keys, keys)
            await self.turns.take(Caller(tenant), command, self.server.memory.add, times=Times())

    async def search(self, uid: str) -> None:
        """A call, and a moment for what it made necessary."""
        tenant, name = uid.split("/")
        command = Search(name, 0, ("s",), from_float32(self._draw(32), Dtype.FLOAT32), 5)
        await self.turns.take(Caller(tenant), command, self.server.memory.search, times=Times())
        await asyncio.sleep(0)

    async def search_until_done(self) -> None:
        """Calls of all in turn, until there are the lists of all."""
        for turn in range(TURNS_MAX):
            await self.search(self.names[turn % len(self.names)])
            if all(map(self.is_done, self.names)):
                return
        raise AssertionError("some have their turn never")

    def is_done(self, uid: str) -> bool:
        """Whether its lists are made: they answer, or are of no use."""
        tenant, name = uid.split("/")
        record = NamespaceRecord(tenant, name, SPEC, created_at_ms=1, uid=uid)
        memory = self.server.memories.peek(record)
        bank = None if memory is None else memory.bank("s", 0)
        state = None if bank is None else bank.index_state
        return state is not None and (state.index == "ivf" or state.reason == reasons.NONE_FASTER)

    def _draw(self, tokens: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        noise = self.rng.standard_normal((1, 1, tokens, DIM), dtype=np.float32)
        return noise + 4 * np.eye(DIM, dtype=np.float32)[self.rng.integers(DIM, size=(1, 1, tokens))]


@pytest.fixture(autouse=True)
def all_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Background work of a small bank takes many slices, none of which is brief."""
    monkeypatch.setattr(upkeep, "BRIEF", 1)
    monkeypatch.setattr(engine_upkeep, "STEP", 100_000)
    monkeypatch.setattr(engine_upkeep, "SLICE", 200_000)


@pytest.fixture
def calls_earn_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """How often they have to come for that does not depend on how busy the machine is."""
    monkeypatch.setattr("recollect_server.application.debt.SHARE", 1000.0)


@pytest.mark.usefixtures("calls_earn_much")
async def test_a_tenants_banks_take_turns() -> None:
    """A call waits for background work of each bank that has some: of a hundred, for half a second."""
    spaces = Spaces(*(f"one/{number}" for number in range(12)))
    await spaces.fill()
    await spaces.search_until_done()
    assert spaces.dispatcher.most_of_one == 1
    spaces.dispatcher.drain()


@pytest.mark.usefixtures("calls_earn_much")
async def test_few_tenants_have_work_queued_at_once() -> None:
    """A call waits for background work of each tenant."""
    spaces = Spaces(*(f"{number}/n" for number in range(12)))
    await spaces.fill()
    await spaces.search_until_done()
    assert spaces.dispatcher.most_of_one == 1
    assert 1 < spaces.dispatcher.most <= LONG_MAX
    spaces.dispatcher.drain()


async def test_a_long_call_is_no_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a call takes half a second nobody is answered: background work takes half of the device."""
    for name, of_time in (("SHARE", 1e-9), ("SPARE", 0.0), ("IDLE_S", 3600.0)):  # hardly anything is earned
        monkeypatch.setattr(f"recollect_server.application.debt.{name}", of_time)
    monkeypatch.setattr(upkeep, "IDLE_S", 0.001)
    spaces = Spaces("one/n")
    await spaces.fill()
    for _ in range(3):
        await spaces.search("one/n")
    await until(lambda: spaces.dispatcher.is_idle)
    gate, before = Gate(spaces.dispatcher), spaces.dispatcher.all["one"]
    monkeypatch.setattr("recollect_server.application.debt.IDLE_S", 0.0)
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert spaces.dispatcher.all["one"] == before
    assert not spaces.is_done("one/n")
    gate.open()
    await until(lambda: spaces.is_done("one/n"))
    spaces.dispatcher.drain()


async def test_tenants_take_turns() -> None:
    """A tenant with a thousand namespaces has nearly all the time for background work, or next to none."""
    many = [f"many/{number}" for number in range(12)]
    spaces = Spaces(*many, "one/n")
    await spaces.fill()
    for turn in range(TURNS_MAX):
        await spaces.search(many[turn % 12])
        await spaces.search("one/n")
        if spaces.is_done("one/n"):
            break
    else:
        raise AssertionError("the other has its turn never")
    assert not any(map(spaces.is_done, many))
    turns = spaces.dispatcher.all
    assert turns["one"] / 4 < turns["many"] < 4 * turns["one"]
    spaces.dispatcher.drain()
