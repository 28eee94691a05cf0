"""What outlasts a registry, and what happens before and after."""

from __future__ import annotations

import dataclasses

import pytest

from recollect_server.domain.errors import RegistryUnavailableError
from recollect_server.domain.registry import Answer, Creation
from tests.contract.registry.conftest import Place
from tests.contract.registry.samples import audit, key, namespace, tenant


async def test_everything_is_there_when_it_is_opened_again(place: Place) -> None:
    """A restart of the server loses a tenant, key, namespace, audit or answer."""
    if not place.lasts:
        pytest.skip("what is kept in memory is gone when it is closed")
    first = place.make()
    await first.open()
    await first.create_tenant(tenant(), audit=audit("tenant"))
    await first.create_key(key("k1"), audit=audit("key"))
    await first.touch_keys({"k1": 7})
    await first.create_namespace(namespace("n"), at_most=1, audit=audit("namespace"))
    await first.remember("r", Answer("f", 201, "{}"), tenant="acme", for_s=3600)
    version = await first.version()
    log = await first.audit_log(tenant=None, before=0, limit=9)
    await first.close()

    second = place.make()
    await second.open()
    assert await second.version() == version
    assert await second.tenant("acme") == tenant()
    assert await second.key("k1") == dataclasses.replace(key("k1"), last_used_at_ms=7)
    assert await second.namespace("acme", "n") == namespace("n")
    assert await second.audit_log(tenant=None, before=0, limit=9) == log
    assert await second.answer("r") == Answer("f", 201, "{}")
    full = await second.create_namespace(namespace("m"), at_most=1, audit=audit())
    assert full is Creation.FULL
    await second.append_audit(audit("again"))
    newest = await second.audit_log(tenant=None, before=0, limit=1)
    assert newest[0].number > log[0].number
    await second.close()


async def test_a_registry_that_is_not_open_says_so(place: Place) -> None:
    """A call before open or after close hangs, or fails as a defect would."""
    registry = place.make()
    with pytest.raises(RegistryUnavailableError, match="not open"):
        await registry.version()
    await registry.open()
    await registry.create_tenant(tenant(), audit=audit())
    await registry.close()
    await registry.close()
    with pytest.raises(RegistryUnavailableError, match="not open"):
        await registry.create_tenant(tenant("b"), audit=audit())


async def test_one_object_may_be_opened_again(place: Place) -> None:
    """A server that closed its registry, or opened it twice, cannot go on."""
    registry = place.make()
    await registry.open()
    await registry.open()
    await registry.create_tenant(tenant(), audit=audit())
    await registry.close()
    await registry.open()
    assert await registry.tenant("acme") == (tenant() if place.lasts else None)
    await registry.close()
