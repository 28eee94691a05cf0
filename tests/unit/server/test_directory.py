"""The registry as a server sees it: what needs no I/O, what is believed and within which bounds."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping

import pytest

from recollect_server.application import directory as module
from recollect_server.application import record_cache
from recollect_server.domain.errors import RegistryUnavailableError
from recollect_server.domain.tenants import Tenant
from tests.unit.server.shaky_registry import AUDIT, PATIENCE_S, World, until

# ---- what needs no I/O ----


async def test_a_record_is_read_once(world: World) -> None:
    """Every call would wait for the registry."""
    await world.namespace("n")
    key, _ = await world.key()
    await world.directory.refresh()
    for _ in range(3):
        assert await world.directory.tenant("one") == Tenant("one", created_at_ms=0)
        assert await world.directory.key(key.key_id) == key
        record = await world.directory.namespace("one", "n")
        assert record is not None
        assert record.uid == "n"
    assert set(world.registry.reads.values()) == {1}


async def test_absence_is_remembered_too(world: World) -> None:
    """Made-up names would each cost a read, again and again."""
    for _ in range(3):
        assert await world.directory.tenant("none") is None
        assert await world.directory.key("no-key") is None
        assert await world.directory.namespace("one", "none") is None
    assert set(world.registry.reads.values()) == {1}


async def test_a_namespace_is_found_for_its_tenant_only(world: World) -> None:
    """One tenant would be handed another's namespace."""
    await world.namespace("n")
    await world.directory.refresh()
    assert await world.directory.namespace("one", "n") is not None
    assert await world.directory.namespace("two", "n") is None


async def test_changes_are_seen_after_a_poll(world: World) -> None:
    """A tenant that was disabled, or a key that was revoked, would stay welcome."""
    old = await world.directory.tenant("one")
    assert old is not None
    assert await world.directory.tenant("two") is None
    await world.tenant("two")
    changed = dataclasses.replace(old, disabled=True, revision=2)
    assert await world.registry.replace_tenant(changed, audit=AUDIT)
    assert await world.directory.tenant("one") == old, "before the poll"
    await world.directory.refresh()
    assert await world.directory.tenant("one") == changed
    assert await world.directory.tenant("two") is not None
    assert await world.registry.delete_tenant("one", audit=AUDIT)
    await world.directory.refresh()
    assert await world.directory.tenant("one") is None


async def test_without_a_recent_poll_records_are_read(world: World) -> None:
    """A server whose watcher is held up would believe what is no longer true."""
    await world.directory.tenant("one")
    world.now_s += record_cache.RECENT_S
    await world.directory.tenant("one")
    assert world.registry.reads["one"] == 1
    world.now_s += 0.001
    await world.tenant("two")
    await world.directory.tenant("one")
    assert world.registry.reads["one"] == 2
    assert not world.telemetry.fallbacks


async def test_the_watcher_sees_changes_of_others(watched: World) -> None:
    """Changes at one server would not reach the others."""
    told = 0

    async def callback() -> None:
        nonlocal told
        told += 1

    assert await watched.directory.tenant("two") is None
    watched.directory.on_change(callback)
    await watched.tenant("two")
    await until(lambda: told)
    assert await watched.directory.tenant("two") is not None


async def test_own_changes_are_told_too(watched: World) -> None:
    """What a server does about a change, as freeing memory, it would not do after its own."""
    told = 0

    async def callback() -> None:
        nonlocal told
        told += 1

    await until(lambda: watched.registry.polls > 2)
    watched.directory.on_change(callback)
    await watched.tenant("two")
    await watched.directory.refresh()
    await until(lambda: told)


# ---- bounds ----


async def test_memory_is_bounded() -> None:
    """A server would grow with every name that anybody ever asked for."""
    world = World(cached_max=10)
    await world.registry.open()
    for number in range(20):
        await world.tenant(f"t{number}")
    await world.directory.refresh()
    for number in range(20):
        await world.directory.tenant(f"t{number}")
    await world.directory.tenant("t10")  # used last
    await world.directory.tenant("t0")  # pushes out the one unused for longest
    for name in ("t10", "t0", "t12"):
        await world.directory.tenant(name)
    assert [world.registry.reads[name] for name in ("t10", "t0", "t12")] == [1, 2, 1]
    await world.directory.tenant("t11")
    assert world.registry.reads["t11"] == 2
    await world.directory.stop()


async def test_made_up_names_push_out_nobody() -> None:
    """An attacker with random keys would make everybody else wait for the registry."""
    world = World(cached_max=10)
    await world.registry.open()
    await world.tenant()
    await world.directory.refresh()
    await world.directory.tenant("one")
    for number in range(50):
        assert await world.directory.tenant(f"made-up-{number}") is None
    assert await world.directory.tenant("made-up-0") is None
    await world.directory.tenant("one")
    assert world.registry.reads["one"] == 1
    assert world.registry.reads["made-up-0"] == 2, "absence is remembered within bounds as well"
    await world.directory.stop()


async def test_callers_of_one_record_share_a_read(world: World) -> None:
    """After each change, the registry would get every waiting call at once."""
    world.registry.open_gate.clear()
    asking = [asyncio.create_task(world.directory.tenant("one")) for _ in range(50)]
    await until(lambda: world.registry.in_flight)
    asking.pop(0).cancel()  # whoever leaves must not take the others along
    world.registry.open_gate.set()
    assert {tenant and tenant.name for tenant in await asyncio.gather(*asking)} == {"one"}
    assert world.registry.reads["one"] == 1


async def test_a_read_from_before_a_change_is_not_joined(world: World) -> None:
    """A call that begins after a revocation would be let in by an answer from before it."""
    world.registry.open_gate.clear()
    early = asyncio.create_task(world.directory.tenant("one"))
    await until(lambda: world.registry.in_flight == 1)
    await world.tenant("two")
    await world.directory.refresh()
    late = asyncio.create_task(world.directory.tenant("one"))
    await until(lambda: world.registry.in_flight == 2)
    world.registry.open_gate.set()
    await asyncio.gather(early, late)
    assert world.registry.reads["one"] == 2


async def test_reads_in_flight_are_bounded(world: World) -> None:
    """A flood of unknown keys would drown the registry, and delay those who are known."""
    await world.directory.tenant("one")
    await world.tenant("two")
    await world.directory.refresh()
    world.registry.open_gate.clear()
    strangers = [asyncio.create_task(world.directory.key(f"{number}")) for number in range(100)]
    await until(lambda: world.registry.in_flight == record_cache.UNKNOWN_READS_MAX)
    known = asyncio.create_task(world.directory.tenant("one"))
    await until(lambda: world.registry.reads["one"] == 2)
    world.registry.open_gate.set()
    assert await known is not None
    assert await asyncio.gather(*strangers) == [None] * 100
    assert world.registry.in_flight_most == record_cache.UNKNOWN_READS_MAX + 1


async def test_waiting_look_ups_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood would pile up in memory until the server dies of it."""
    monkeypatch.setattr(record_cache, "UNKNOWN_WAITING_MAX", 10)
    world.registry.open_gate.clear()
    asking = [asyncio.create_task(world.directory.key(f"{number}")) for number in range(30)]
    await until(lambda: sum(task.done() for task in asking) == 20)
    world.registry.open_gate.set()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert answers.count(None) == 10
    assert sum(isinstance(answer, RegistryUnavailableError) for answer in answers) == 20


# ---- the last use of keys, and the end ----


async def test_last_use_is_written_down(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could tell which keys are still in use before revoking one."""
    monkeypatch.setattr(module, "FLUSH_S", 0.005)
    key, _ = await world.key()
    await world.directory.start()
    world.registry.go_away()
    world.directory.touch(key.key_id)
    world.directory.touch("gone")
    await asyncio.sleep(0.02)
    world.registry.away = None
    async with asyncio.timeout(PATIENCE_S):
        while (stored := await world.registry.key(key.key_id)) is None or stored.last_used_at_ms is None:
            await asyncio.sleep(0.005)
    assert stored.last_used_at_ms == 1_000_000


async def test_keys_that_are_always_in_use_are_written_down_now_and_then(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under load the registry is written to without a pause, and what others did last is never written."""
    monkeypatch.setattr(module, "TOUCHED_AT_ONCE", 2)
    written: list[set[str]] = []

    async def touch_keys(last_used_at_ms: Mapping[str, int]) -> None:
        written.append(set(last_used_at_ms))
        world.now_s += 1
        for name in ("hot", "hotter"):
            world.directory.touch(name)

    monkeypatch.setattr(world.registry, "touch_keys", touch_keys)
    for name in ("hot", "hotter", "cold"):
        world.directory.touch(name)
    for _ in range(2):
        await asyncio.wait_for(world.directory._flush(), PATIENCE_S)
    assert written == [{"hot", "hotter"}, {"cold"}, {"hot", "hotter"}]


async def test_last_use_is_written_down_at_the_end(watched: World) -> None:
    """The uses of the last seconds would be lost with each restart."""
    key, _ = await watched.key()
    watched.directory.touch(key.key_id)
    await watched.directory.stop()
    assert watched.registry.touched == {key.key_id: 1_000_000}


async def test_uses_that_wait_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry that stays away would let them pile up."""
    monkeypatch.setattr(module, "TOUCHED_MAX", 10)
    for number in range(100):
        world.directory.touch(f"{number}")
    assert len(world.directory._touched_ms) == 10


async def test_the_end_is_clean(watched: World) -> None:
    """Shutdown would hang on a read under way, or leave tasks behind."""
    watched.registry.open_gate.clear()
    asking = asyncio.create_task(watched.directory.tenant("one"))
    await until(lambda: watched.registry.in_flight)
    await watched.directory.stop()
    with pytest.raises(RegistryUnavailableError):
        await asking
    await watched.directory.stop()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
