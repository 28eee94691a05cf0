"""Who a credential belongs to, and that no refusal says why."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator

import pytest

from recollect_server.application.authentication import KeyAuthenticator
from recollect_server.domain.errors import RegistryUnavailableError, UnauthenticatedError
from recollect_server.domain.identity import ALL_SCOPES, Caller, Operator
from recollect_server.registry.authenticators import SingleTenant
from tests.unit.server.shaky_registry import AUDIT, World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    await made.registry.open()
    await made.tenant()
    await made.tenant("shut", disabled=True)
    await made.directory.refresh()
    yield made
    await made.directory.stop()


@pytest.fixture
def authenticator(world: World) -> KeyAuthenticator:
    return KeyAuthenticator(world.directory, lambda: world.now_s)


async def test_a_key_gives_its_tenant(world: World, authenticator: KeyAuthenticator) -> None:
    """Nobody could call, or somebody as somebody else."""
    key, token = await world.key()
    await world.directory.refresh()
    for _ in range(2):
        assert await authenticator.authenticate(token) == Caller("one", key.key_id, ALL_SCOPES)


async def test_an_operator_key_gives_no_tenant(world: World, authenticator: KeyAuthenticator) -> None:
    """An operator would have no way in, or pass for a tenant."""
    key, token = await world.key(None)
    assert await authenticator.authenticate(token) == Operator(key.key_id)


async def test_refusals_are_all_the_same(world: World, authenticator: KeyAuthenticator) -> None:
    """An attacker would learn which keys exist, were revoked, or are half right."""
    good_key, good = await world.key()
    revoked_key, revoked = await world.key()
    await world.registry.replace_key(dataclasses.replace(revoked_key, revoked_at_ms=1), audit=AUDIT)
    _, expired = await world.key(expires_at_ms=1_000_000)
    _, shut = await world.key("shut")
    _, other = await world.key()
    await world.directory.refresh()
    bad = {
        "none": None,
        "empty": "",
        "malformed": "Bearer",
        "too long": good + "0" * 500,
        "longer": good + "0",
        "newline": good + "\n",
        "upper case": good.upper(),
        "not ASCII": good[:-1] + "é",
        "unknown id": "rk_" + "0" * 16 + good[19:],
        "wrong secret": good[:-64] + "0" * 64,
        "another key's secret": good[:20] + other[20:],
        "no secret": good[:20],
        "revoked": revoked,
        "expired": expired,
        "tenant disabled": shut,
    }
    told = set()
    for name, credential in bad.items():
        with pytest.raises(UnauthenticatedError) as caught:
            raise AssertionError(name, await authenticator.authenticate(credential))
        error = caught.value
        told.add((error.message, error.reason, error.argument, error.retry_after_s))
    assert len(told) == 1
    assert await authenticator.authenticate(good) == Caller("one", good_key.key_id, ALL_SCOPES)


async def test_malformed_credentials_cost_no_look_up(world: World, authenticator: KeyAuthenticator) -> None:
    """Garbage would be carried to the registry."""
    for credential in (None, "", "rk_", "rk_zz_zz", "x" * 1_000_000):
        with pytest.raises(UnauthenticatedError):
            await authenticator.authenticate(credential)
    assert not world.registry.reads


async def test_keys_expire_by_the_clock(world: World, authenticator: KeyAuthenticator) -> None:
    """A key would stay good for as long as it is remembered."""
    _, token = await world.key(expires_at_ms=1_000_500)
    await authenticator.authenticate(token)
    world.now_s += 0.5
    with pytest.raises(UnauthenticatedError):
        await authenticator.authenticate(token)


async def test_revocation_is_effective_after_the_next_poll(
    world: World, authenticator: KeyAuthenticator
) -> None:
    """A leaked key could not be stopped."""
    key, token = await world.key()
    await world.directory.refresh()
    await authenticator.authenticate(token)
    await world.registry.replace_key(dataclasses.replace(key, revoked_at_ms=1), audit=AUDIT)
    await world.directory.refresh()
    with pytest.raises(UnauthenticatedError):
        await authenticator.authenticate(token)


@pytest.mark.parametrize("how", ["disabled", "deleted"])
async def test_a_tenant_can_be_shut_out(world: World, authenticator: KeyAuthenticator, how: str) -> None:
    """The keys of a tenant that is no more would still be good."""
    _, token = await world.key()
    await world.directory.refresh()
    await authenticator.authenticate(token)
    tenant = await world.registry.tenant("one")
    assert tenant is not None
    if how == "disabled":
        shut = dataclasses.replace(tenant, disabled=True, revision=tenant.revision + 1)
        assert await world.registry.replace_tenant(shut, audit=AUDIT)
    else:
        assert await world.registry.delete_tenant("one", audit=AUDIT)
    await world.directory.refresh()
    with pytest.raises(UnauthenticatedError):
        await authenticator.authenticate(token)


async def test_a_known_caller_goes_on_without_the_registry(
    world: World, authenticator: KeyAuthenticator
) -> None:
    """An outage of the registry would look like a wrong key, or let in a stranger."""
    _, token = await world.key()
    _, stranger = await world.key()
    await world.directory.refresh()
    caller = await authenticator.authenticate(token)
    world.registry.go_away()
    with pytest.raises(RegistryUnavailableError):
        await world.directory.refresh()
    assert await authenticator.authenticate(token) == caller
    with pytest.raises(UnauthenticatedError):
        await authenticator.authenticate(token[:-64] + "0" * 64)
    with pytest.raises(RegistryUnavailableError):
        await authenticator.authenticate(stranger)


async def test_only_good_credentials_count_as_use(world: World, authenticator: KeyAuthenticator) -> None:
    """Somebody who guesses would make an unused key look used."""
    key, token = await world.key()
    with pytest.raises(UnauthenticatedError):
        await authenticator.authenticate(token[:-64] + "0" * 64)
    assert not world.directory._touched_ms
    await authenticator.authenticate(token)
    assert list(world.directory._touched_ms) == [key.key_id]


async def test_a_single_tenant_needs_no_key() -> None:
    """`--dev` and embedded use would ask for a key that nobody made."""
    assert await SingleTenant("me").authenticate(None) == Caller("me")
    assert await SingleTenant("me").authenticate("anything") == Caller("me")
