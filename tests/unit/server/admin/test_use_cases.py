"""Tenants and keys, below any transport."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from recollect_server.application.audit import AuditLog
from recollect_server.application.changes import Changes
from recollect_server.application.keys import LIFETIME_S_MAX, OVERLAP_S_MAX, IssuedKey, Keys
from recollect_server.application.tenants import Tenants
from recollect_server.domain.audit import SERVER
from recollect_server.domain.errors import (
    InvalidArgumentError,
    KeyNotFoundError,
    RevisionConflictError,
    TenantNotFoundError,
)
from recollect_server.domain.identity import Scope
from recollect_server.domain.tenants import Quotas
from tests.admin_world import World, world

READ = frozenset({Scope.READ})


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
async def made() -> AsyncIterator[World]:
    """A world of its own."""
    async with world() as found:
        yield found


@pytest.fixture
def clock() -> Clock:
    """What `keys` tells the time by."""
    return Clock()


@pytest.fixture
def keys(made: World, clock: Clock) -> Keys:
    """The use cases."""
    return Keys(made.directory, changes=Changes(monotonic=time.monotonic), clock=clock)


async def test_changes_at_once_are_all_kept(made: World) -> None:
    """Of two changes at once that name no revision, one is lost or refused."""
    tenants = Tenants(made.directory, clock=Clock())
    changes = (tenants.set_quotas("acme", Quotas(weight=n), origin=SERVER) for n in range(2, 6))
    changed = await asyncio.gather(*changes)
    assert sorted(tenant.revision for tenant in changed) == [2, 3, 4, 5]
    assert (await tenants.get("acme")).revision == 5


async def test_a_change_of_nothing_is_none(made: World) -> None:
    """Who sets what is set already makes another operator's revision void."""
    tenants = Tenants(made.directory, clock=Clock())
    before = await tenants.get("acme")
    assert await tenants.set_disabled("acme", False, revision=1, origin=SERVER) == before
    assert await tenants.set_quotas("acme", before.quotas, origin=SERVER) == before
    with pytest.raises(RevisionConflictError):
        await tenants.set_disabled("acme", False, revision=2, origin=SERVER)


async def test_a_change_is_seen_when_it_returns(made: World, keys: Keys) -> None:
    """A key that was just issued is refused by the server that issued it, or a revoked one goes on."""
    issued = await keys.issue("acme", scopes=READ, origin=SERVER)
    assert await made.directory.key(issued.key.key_id) == issued.key
    revoked = await keys.revoke("acme", issued.key.key_id, origin=SERVER)
    assert await made.directory.key(issued.key.key_id) == revoked
    assert revoked.revoked_at_ms is not None


async def test_a_rotated_key_keeps_its_length_of_life(keys: Keys, clock: Clock) -> None:
    """A key that was to expire does not after a rotation, or the old one outlives what it was given."""
    old = await keys.issue("acme", scopes=READ, lifetime_s=100, origin=SERVER)
    clock.now_s += 90
    new = await keys.rotate("acme", old.key.key_id, overlap_s=60, origin=SERVER)
    assert new.key.expires_at_ms == int(clock.now_s * 1000) + 100_000
    ending = {key.key_id: key for key in await keys.list("acme", after="", limit=99)}[old.key.key_id]
    assert ending.expires_at_ms == old.key.expires_at_ms
    clock.now_s += 10
    with pytest.raises(KeyNotFoundError, match="expired"):
        await keys.rotate("acme", old.key.key_id, overlap_s=0, origin=SERVER)


@pytest.mark.parametrize("lifetime_s", [None, 1000, 30])
async def test_a_key_that_is_rotated_twice_gives_two_of_its_length_of_life(
    keys: Keys, clock: Clock, lifetime_s: int | None
) -> None:
    """Who rotates a key again, since the first new token was lost, gets one that dies with the overlap."""
    old = await keys.issue("acme", scopes=READ, lifetime_s=lifetime_s, origin=SERVER)
    for _ in range(3):
        clock.now_s += 5
        new = await keys.rotate("acme", old.key.key_id, overlap_s=60, origin=SERVER)
        ends_ms = None if lifetime_s is None else int(clock.now_s * 1000) + lifetime_s * 1000
        assert new.key.expires_at_ms == ends_ms
    ending = {key.key_id: key for key in await keys.list("acme", after="", limit=99)}[old.key.key_id]
    assert ending.expires_at_ms == old.key.created_at_ms + min(65, lifetime_s or 65) * 1000


@pytest.mark.parametrize("overlap_s", [-1, OVERLAP_S_MAX + 1])
async def test_an_overlap_is_bounded(keys: Keys, overlap_s: int) -> None:
    """An old key that was rotated goes on for ever."""
    issued = await keys.issue("acme", scopes=READ, origin=SERVER)
    with pytest.raises(InvalidArgumentError):
        await keys.rotate("acme", issued.key.key_id, overlap_s=overlap_s, origin=SERVER)


async def test_what_no_key_can_be(keys: Keys) -> None:
    """A key is made that allows nothing, or of an operator with scopes, or that is expired from the start."""
    with pytest.raises(InvalidArgumentError, match="scopes"):
        await keys.issue("acme", scopes=frozenset(), origin=SERVER)
    with pytest.raises(InvalidArgumentError, match="scopes"):
        await keys.issue(None, scopes=READ, origin=SERVER)
    for lifetime_s in (0, -1, LIFETIME_S_MAX + 1):
        with pytest.raises(InvalidArgumentError, match="lifetime_s"):
            await keys.issue("acme", scopes=READ, lifetime_s=lifetime_s, origin=SERVER)
    with pytest.raises(TenantNotFoundError):
        await keys.issue("nobody", scopes=READ, origin=SERVER)


async def test_what_a_fast_clock_wrote_of_an_earlier_tenant_stays_its_own(made: World, clock: Clock) -> None:
    """Who gets a used name reads what the earlier tenant did, if servers' clocks are apart."""
    tenants = Tenants(made.directory, clock=clock)  # decades behind what made the first one
    await tenants.delete("acme", origin=SERVER)
    await tenants.create("acme", quotas=Quotas(), origin=SERVER)
    log = AuditLog(made.directory)
    own = await log.page_of_tenant("acme", before=0, limit=99)
    assert [entry.audit.action for entry in own] == ["tenant.create"]
    assert len(await log.page(tenant="acme", before=0, limit=99)) > len(own)


async def test_a_token_is_not_printed(keys: Keys) -> None:
    """A token lands in a log, with the object that carries it."""
    issued: IssuedKey = await keys.issue("acme", scopes=READ, origin=SERVER)
    assert issued.token not in repr(issued)
    assert issued.token not in str(replace(issued))
