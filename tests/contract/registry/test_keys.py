"""API keys."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from recollect_server.domain.registry import Creation, Registry
from tests.contract.registry.samples import NOW_MS, audit, key, tenant


@pytest.fixture(autouse=True)
async def acme(registry: Registry) -> None:
    """A tenant to have keys."""
    await registry.create_tenant(tenant(), audit=audit())


@pytest.mark.parametrize("whose", ["acme", None])
async def test_what_is_created_is_found(registry: Registry, whose: str | None) -> None:
    """A tenant's or an operator's key comes back changed, or an unknown one is found."""
    made = key("k1", tenant=whose, label="CI, é ☃")
    assert await registry.create_key(made, audit=audit()) is Creation.CREATED
    assert await registry.key("k1") == made
    assert await registry.key("k2") is None
    assert await registry.key("") is None


async def test_a_rotated_key_comes_back(registry: Registry) -> None:
    """A registry forgets how long a key was to live once it was rotated."""
    made = key("k1")
    await registry.create_key(made, audit=audit())
    assert await registry.replace_key(made.ending(NOW_MS), audit=audit())
    found = await registry.key("k1")
    assert found == made.ending(NOW_MS)
    assert found is not None
    assert found.lifetime_ms == made.lifetime_ms == 1


async def test_a_key_needs_its_tenant(registry: Registry) -> None:
    """A key of nobody is stored, or a tenant without a name makes it an operator's."""
    assert await registry.create_key(key("k1", tenant=""), audit=audit()) is Creation.NO_TENANT
    assert await registry.create_key(key("k1", tenant="nobody"), audit=audit()) is Creation.NO_TENANT
    assert await registry.key("k1") is None


async def test_an_id_is_given_once(registry: Registry) -> None:
    """A second key of an id takes the first one's place, also across tenants."""
    await registry.create_tenant(tenant("other"), audit=audit())
    await registry.create_key(key("k1"), audit=audit())
    for whose in ("acme", "other", None):
        again = key("k1", tenant=whose, label="again")
        assert await registry.create_key(again, audit=audit()) is Creation.EXISTS
    assert await registry.key("k1") == key("k1")
    assert await registry.keys("other", after="", limit=9) == []
    assert await registry.keys(None, after="", limit=9) == []


async def test_pages_are_by_id_and_of_one_tenant(registry: Registry) -> None:
    """A list of keys shows those of others, or misses some."""
    await registry.create_tenant(tenant("other"), audit=audit())
    for number in range(9):
        whose = ("acme", "other", None)[number % 3]
        await registry.create_key(key(f"k{number}", tenant=whose), audit=audit())
    await registry.touch_keys({"k3": 7})
    first = await registry.keys("acme", after="", limit=2)
    assert [(each.key_id, each.last_used_at_ms) for each in first] == [("k0", None), ("k3", 7)]
    assert [each.key_id for each in await registry.keys("acme", after="k3", limit=2)] == ["k6"]
    assert [each.key_id for each in await registry.keys(None, after="k2", limit=9)] == ["k5", "k8"]
    assert await registry.keys("nobody", after="", limit=9) == []
    assert await registry.keys("", after="", limit=9) == []


async def test_a_replaced_key_keeps_its_last_use(registry: Registry) -> None:
    """Revoking a key loses when it was last used, or replacing makes one."""
    await registry.create_key(key("k1"), audit=audit())
    await registry.touch_keys({"k1": 7})
    assert await registry.replace_key(key("k1", revoked=True), audit=audit())
    assert await registry.key("k1") == dataclasses.replace(key("k1", revoked=True), last_used_at_ms=7)
    assert not await registry.replace_key(key("k2"), audit=audit())
    assert await registry.key("k2") is None


async def test_a_key_cannot_change_hands(registry: Registry) -> None:
    """Replacing a key gives it to another tenant or makes it an operator's."""
    await registry.create_tenant(tenant("other"), audit=audit())
    await registry.create_key(key("k1"), audit=audit())
    for whose in ("other", None):
        assert not await registry.replace_key(key("k1", tenant=whose), audit=audit())
        with pytest.raises(ValueError, match="different tenants"):
            await registry.rotate_key(key("k1"), key("k2", tenant=whose), audit=audit())
    assert await registry.key("k1") == key("k1")


@pytest.mark.parametrize("whose", ["acme", None])
async def test_a_key_never_lasts_longer(pair: tuple[Registry, Registry], whose: str | None) -> None:
    """A rotation at one server brings back a key that was just revoked, or was to end, at another."""
    read = key("k1", tenant=whose)
    await pair[0].create_key(read, audit=audit())
    assert await pair[0].replace_key(dataclasses.replace(read, expires_at_ms=NOW_MS), audit=audit("kept"))
    for change in (
        pair[1].replace_key(read, audit=audit()),
        pair[1].rotate_key(read, key("k2", tenant=whose), audit=audit()),
    ):
        assert not await change
    revoked = dataclasses.replace(read, expires_at_ms=NOW_MS, revoked_at_ms=NOW_MS)
    assert await pair[1].replace_key(revoked, audit=audit("kept"))
    ending = dataclasses.replace(read, expires_at_ms=NOW_MS - 1)
    later = dataclasses.replace(revoked, revoked_at_ms=NOW_MS + 1)
    for change in (
        pair[0].replace_key(later, audit=audit()),
        pair[0].rotate_key(ending, key("k2", tenant=whose), audit=audit()),
    ):
        assert not await change
    assert await pair[0].keys(whose, after="", limit=9) == [revoked]
    endless = dataclasses.replace(key("k3", tenant=whose), expires_at_ms=None)
    await pair[0].create_key(endless, audit=audit())
    assert await pair[0].replace_key(dataclasses.replace(endless, expires_at_ms=NOW_MS + 9), audit=audit())
    assert not await pair[0].replace_key(endless, audit=audit())


@pytest.mark.parametrize("whose", ["acme", None])
async def test_rotation_is_both_or_neither(registry: Registry, whose: str | None) -> None:
    """A rotation leaves a tenant with the old key changed and no new one, or the other way round."""
    old = key("k1", tenant=whose)
    ending = dataclasses.replace(old, expires_at_ms=NOW_MS)
    new = key("k2", tenant=whose)
    assert not await registry.rotate_key(ending, new, audit=audit())
    assert await registry.key("k2") is None
    await registry.create_key(old, audit=audit())
    assert await registry.rotate_key(ending, new, audit=audit())
    assert await registry.keys(whose, after="", limit=9) == [ending, new]
    # The new id is taken: nothing may happen to the old one.
    assert not await registry.rotate_key(old, new, audit=audit())
    assert await registry.keys(whose, after="", limit=9) == [ending, new]


async def test_the_latest_use_stays(pair: tuple[Registry, Registry]) -> None:
    """A server that reports late sets a key's last use back, or notes one of a key that is gone."""
    await pair[0].create_key(key("k1"), audit=audit())
    await pair[0].touch_keys({"k1": 9, "gone": 9})
    await pair[1].touch_keys({"k1": 8})
    await pair[1].touch_keys({})
    used = await pair[1].key("k1")
    assert used is not None
    assert used.last_used_at_ms == 9
    await pair[0].create_key(key("gone"), audit=audit())
    assert await pair[0].key("gone") == key("gone")


async def test_many_keys_are_touched_at_once(registry: Registry) -> None:
    """The uses of some keys are lost where there are more than one message takes."""
    await registry.create_key(key("k1"), audit=audit())
    await registry.touch_keys({**{f"gone{i}": i for i in range(2500)}, "k1": 3})
    used = await registry.key("k1")
    assert used is not None
    assert used.last_used_at_ms == 3


async def test_a_written_last_use_is_passed_over(registry: Registry) -> None:
    """Replacing a key that was read before sets its last use back."""
    await registry.create_key(dataclasses.replace(key("k1"), last_used_at_ms=1), audit=audit())
    assert await registry.key("k1") == key("k1")


async def test_one_of_many_rotates_to_an_id(pair: tuple[Registry, Registry]) -> None:
    """Two rotations to the same new id both succeed."""
    await pair[0].create_key(key("k1"), audit=audit())
    tries = [pair[i % 2].rotate_key(key("k1"), key("k2"), audit=audit()) for i in range(6)]
    assert sum(await asyncio.gather(*tries)) == 1
