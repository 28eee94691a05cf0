"""A directory over a registry that can go away."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.unit.server.shaky_registry import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """With tenant "one", and no watcher: the tests poll by `refresh`."""
    made = World()
    await made.registry.open()
    await made.tenant()
    await made.directory.refresh()
    yield made
    await made.directory.stop()


@pytest.fixture
async def watched(world: World) -> World:
    """The same, with the watcher at work."""
    await world.directory.start()
    return world
