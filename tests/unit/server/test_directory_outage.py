"""What a server believes while its registry is away, for how long, and how it recovers."""

from __future__ import annotations

import asyncio

import pytest

from recollect_server.domain.errors import RegistryUnavailableError
from recollect_server.domain.tenants import Tenant
from tests.unit.server.shaky_registry import World, until


async def refuses(world: World, name: str) -> None:
    with pytest.raises(RegistryUnavailableError) as caught:
        await world.directory.tenant(name)
    assert caught.value.retry_after_s
    assert "test took it" not in caught.value.message, "what ails the registry is nobody else's business"


async def test_known_callers_go_on_while_it_is_away(watched: World) -> None:
    """A restart of the registry would stop every call of everybody."""
    await watched.directory.tenant("one")
    assert await watched.directory.tenant("none") is None
    assert watched.directory.unavailable_reason == ""
    watched.registry.go_away()
    await until(lambda: watched.directory.unavailable_reason)
    assert "test took it away" in watched.directory.unavailable_reason
    watched.now_s += 30
    reads = watched.registry.reads.total()
    for expected in range(1, 4):
        assert await watched.directory.tenant("one") is not None
        assert watched.telemetry.fallbacks["registry-cache"] == expected
    assert await watched.directory.tenant("none") is None
    await refuses(watched, "never-asked-for")
    assert watched.registry.reads.total() == reads, "nobody waits for what is known to be away"


async def test_nothing_is_believed_for_ever(watched: World) -> None:
    """A server that lost its registry would let in for ever who was let in once."""
    await watched.directory.tenant("one")
    watched.registry.go_away()
    await until(lambda: watched.directory.unavailable_reason)
    watched.now_s += 60
    assert await watched.directory.tenant("one") is not None
    watched.now_s += 0.1
    await refuses(watched, "one")


async def test_what_may_have_changed_is_not_believed(world: World) -> None:
    """A key that was revoked just before the registry went away would be let in, a new namespace denied."""
    await world.directory.tenant("one")
    assert await world.directory.tenant("two") is None
    await world.tenant("two")
    await world.directory.refresh()
    world.registry.go_away()
    with pytest.raises(RegistryUnavailableError):
        await world.directory.refresh()
    await refuses(world, "one")
    await refuses(world, "two")


async def test_records_are_read_again_after_a_change(watched: World) -> None:
    """Callers that were idle since some change would be locked out when the registry goes away."""
    await watched.directory.tenant("one")
    await watched.tenant("two")
    await until(lambda: watched.registry.reads["one"] == 2)
    watched.registry.go_away()
    await until(lambda: watched.directory.unavailable_reason)
    assert await watched.directory.tenant("one") is not None


async def test_a_read_that_fails_falls_back(world: World) -> None:
    """A caller would be refused for the moments in which nobody has noticed yet."""
    await world.directory.tenant("one")
    world.now_s += 2
    world.registry.go_away()
    assert await world.directory.tenant("one") is not None
    assert world.telemetry.fallbacks["registry-cache"] == 1
    await refuses(world, "two")


async def test_callers_do_not_wait_for_a_registry_that_hangs(world: World) -> None:
    """Each call would hang for as long as the registry's own timeout."""
    await world.directory.tenant("one")
    world.now_s += 2
    world.registry.open_gate.clear()
    asking = [asyncio.create_task(world.directory.tenant(name)) for name in ("one", "two")]
    await until(lambda: world.registry.in_flight == 2)
    world.registry.go_away()
    with pytest.raises(RegistryUnavailableError):
        await world.directory.refresh()
    one, two = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(one, Tenant)
    assert isinstance(two, RegistryUnavailableError)
    world.registry.away = None
    world.registry.open_gate.set()


@pytest.mark.parametrize("error", [RegistryUnavailableError("away"), RuntimeError("a defect")])
async def test_it_recovers_by_itself(watched: World, error: Exception) -> None:
    """A server would have to be restarted after each outage of its registry."""
    watched.registry.away = error
    await until(lambda: watched.directory.unavailable_reason)
    watched.now_s += 3600
    await refuses(watched, "one")
    watched.registry.away = None
    await until(lambda: not watched.directory.unavailable_reason)
    assert await watched.directory.tenant("one") is not None


async def test_it_starts_without_its_registry() -> None:
    """Servers and registry would have to be started in order."""
    world = World()
    world.registry.go_away()
    await world.directory.start()
    assert world.directory.unavailable_reason
    await refuses(world, "one")
    world.registry.away = None
    await until(lambda: not world.directory.unavailable_reason)
    assert await world.directory.tenant("one") is None
    await world.directory.stop()


async def test_a_registry_of_no_use_ends_the_start() -> None:
    """A server with a broken registry file would wait for ever instead of saying so."""
    world = World()
    world.registry.away = ValueError("no registry")
    with pytest.raises(ValueError, match="no registry"):
        await world.directory.start()
    await world.directory.stop()


async def test_a_failing_callback_ends_nothing(watched: World) -> None:
    """One defect would leave the server blind for all later changes."""
    told: list[str] = []

    async def fail() -> None:
        raise RuntimeError("a defect of the test")

    async def callback() -> None:
        told.append("changed")

    watched.directory.on_change(fail)
    watched.directory.on_change(callback)
    for name in ("two", "three"):
        told.clear()
        await watched.tenant(name)
        await until(lambda: told)
        assert await watched.directory.tenant(name) is not None
