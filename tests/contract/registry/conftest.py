"""Every registry: a SQLite file, SQLite in memory, Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from recollect_server.domain.registry import Registry
from recollect_server.registry.redis import RedisRegistry
from recollect_server.registry.sqlite import SqliteRegistry
from tests.redis_server import RedisServer, require_redis

TIMEOUT_S = 20.0
"""Long: a busy machine must not look like a Redis that is away."""


class HandClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Place:
    """Somewhere that registries are kept.

    Attributes:
        kind: For a test that is about one kind.
        make: A registry of this place, not yet open. Each has the same data, if the place `lasts`.
        clock: What the registries go by, but Redis has its own.
        lasts: Whether the data outlasts a registry.
        shared: Whether several registries may be open at once.
    """

    kind: str
    make: Callable[[], Registry]
    clock: HandClock
    lasts: bool
    shared: bool


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One for all tests, which empty it."""
    require_redis()
    with RedisServer() as server:
        yield server


def place_in_redis(server: RedisServer, *, timeout_s: float = TIMEOUT_S) -> Place:
    """A place in a Redis, with what it holds."""
    clock = HandClock()

    def make() -> Registry:
        return RedisRegistry(server.url, ca_file=server.ca_file, timeout_s=timeout_s)

    return Place("redis", make, clock, lasts=True, shared=True)


@pytest.fixture(params=["sqlite", "memory", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Each kind, empty."""
    clock = HandClock()
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        assert server.command("FLUSHALL") == "+OK"
        return place_in_redis(server)
    path = tmp_path / "registry.db" if request.param == "sqlite" else None
    return Place(
        str(request.param), lambda: SqliteRegistry(path, clock=clock), clock, path is not None, shared=False
    )


@pytest_asyncio.fixture
async def registry(place: Place) -> AsyncIterator[Registry]:
    """An open one."""
    made = place.make()
    await made.open()
    yield made
    await made.close()


@pytest_asyncio.fixture
async def pair(place: Place, registry: Registry) -> AsyncIterator[tuple[Registry, Registry]]:
    """Two servers' registries of one place; where there can be one only, it is both."""
    if not place.shared:
        yield registry, registry
        return
    other = place.make()
    await other.open()
    yield registry, other
    await other.close()
