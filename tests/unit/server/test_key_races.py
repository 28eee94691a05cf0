"""Two administrators change one key at the same time."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import pytest

from recollect_server.domain.audit import SERVER
from recollect_server.domain.credentials import Key
from recollect_server.domain.errors import KeyNotFoundError, RevisionConflictError
from recollect_server.domain.identity import Scope
from recollect_server.registry.sqlite import SqliteRegistry
from tests.admin_world import World, world


class Interrupted(SqliteRegistry):
    """Where somebody else comes between the reading of a key and its change.

    Attributes:
        others: What they do, each once.
    """

    def __init__(self) -> None:
        super().__init__(None, clock=time.time)
        self.others: list[Callable[[], Awaitable[object]]] = []

    async def key(self, key_id: str) -> Key | None:
        """Reads, and lets somebody else act."""
        found = await super().key(key_id)
        if self.others:
            await self.others.pop()()
        return found


async def issued(made: World) -> str:
    """The id of a new key of acme."""
    keys = made.services.keys
    return (await keys.issue("acme", scopes=frozenset({Scope.READ}), origin=SERVER)).key.key_id


async def test_a_rotation_does_not_bring_back_a_revoked_key() -> None:
    """A key that leaked, and was revoked while somebody rotated it, lets in whoever found it."""
    registry = Interrupted()
    async with world(registry) as made:
        keys, key_id = made.services.keys, await issued(made)
        registry.others = [lambda: keys.revoke("acme", key_id, origin=SERVER)]
        with pytest.raises(KeyNotFoundError, match="revoked"):
            await keys.rotate("acme", key_id, overlap_s=3600, origin=SERVER)
        found = await registry.key(key_id)
        assert found is not None
        assert found.revoked_at_ms is not None


async def test_the_shorter_overlap_wins() -> None:
    """A key that was to end at once goes on for the hour of somebody else's rotation."""
    registry = Interrupted()
    async with world(registry) as made:
        keys, key_id = made.services.keys, await issued(made)
        registry.others = [lambda: keys.rotate("acme", key_id, overlap_s=60, origin=SERVER)]
        before_ms = int(time.time() * 1000)
        await keys.rotate("acme", key_id, overlap_s=3600, origin=SERVER)
        found = await registry.key(key_id)
        assert found is not None
        assert found.expires_at_ms is not None
        assert found.expires_at_ms - before_ms < 3600 * 1000


@pytest.mark.parametrize("other", ["rotate", "revoke"])
async def test_a_key_is_revoked_whatever_others_do(other: str) -> None:
    """An administrator is told that a key does not exist, or that it is revoked, and it works on."""
    registry = Interrupted()
    async with world(registry) as made:
        keys, key_id = made.services.keys, await issued(made)
        registry.others = [
            (lambda: keys.rotate("acme", key_id, overlap_s=60, origin=SERVER))
            if other == "rotate"
            else (lambda: keys.revoke("acme", key_id, origin=SERVER))
        ]
        await keys.revoke("acme", key_id, origin=SERVER)
        found = await registry.key(key_id)
        assert found is not None
        assert found.revoked_at_ms is not None


async def test_a_change_that_never_gets_its_turn_says_so() -> None:
    """Administrators who are always faster keep a request for ever."""
    registry = Interrupted()
    async with world(registry) as made:
        keys, key_id = made.services.keys, await issued(made)

        async def shorten() -> None:
            found = await SqliteRegistry.key(registry, key_id)
            assert found is not None
            registry.others.append(shorten)
            overlap_s = next(overlaps)
            others, registry.others = registry.others, []
            await keys.rotate("acme", key_id, overlap_s=overlap_s, origin=SERVER)
            registry.others = others

        overlaps = iter(range(100, 0, -10))
        registry.others = [shorten]
        with pytest.raises(RevisionConflictError, match="others"):
            await keys.revoke("acme", key_id, origin=SERVER)
