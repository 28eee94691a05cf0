"""Tenants and what belongs to them."""

from __future__ import annotations

import asyncio

from recollect_server.domain.registry import Creation, Registry
from tests.contract.registry.samples import audit, key, namespace, tenant


async def test_what_is_created_is_found(registry: Registry) -> None:
    """A tenant comes back changed, or an unknown one is found."""
    assert await registry.create_tenant(tenant(), audit=audit()) is Creation.CREATED
    assert await registry.tenant("acme") == tenant()
    assert await registry.tenant("acm") is None
    assert await registry.tenant("") is None


async def test_a_name_is_given_once(registry: Registry) -> None:
    """A second tenant of a name replaces the first, or is noted as made."""
    await registry.create_tenant(tenant(), audit=audit())
    assert await registry.create_tenant(tenant(disabled=True), audit=audit()) is Creation.EXISTS
    assert await registry.tenant("acme") == tenant()
    assert len(await registry.audit_log(tenant=None, before=0, limit=9)) == 1


async def test_one_of_many_creates_it(pair: tuple[Registry, Registry]) -> None:
    """Two servers both make the same tenant."""
    tries = [pair[i % 2].create_tenant(tenant(revision=i + 1), audit=audit()) for i in range(10)]
    outcomes = await asyncio.gather(*tries)
    assert sorted(each.name for each in outcomes) == ["CREATED"] + ["EXISTS"] * 9
    made = await pair[0].tenant("acme")
    assert made is not None
    assert made.revision == outcomes.index(Creation.CREATED) + 1


async def test_pages_are_by_name(registry: Registry) -> None:
    """A page misses a tenant, repeats one, or is out of order."""
    names = ["b", "a", "a-1", "a0", "0", "z" * 63, "ab"]
    for name in names:
        await registry.create_tenant(tenant(name), audit=audit())
    seen: list[str] = []
    while page := await registry.tenants(after=seen[-1] if seen else "", limit=3):
        assert len(page) <= 3
        seen += [each.name for each in page]
    assert seen == sorted(names)
    assert [each.name for each in await registry.tenants(after="a-", limit=2)] == ["a-1", "a0"]


async def test_a_replacement_needs_the_revision_before_its_own(registry: Registry) -> None:
    """An operator overwrites what another one changed in between."""
    await registry.create_tenant(tenant(), audit=audit())
    assert await registry.replace_tenant(tenant(revision=2, disabled=True), audit=audit())
    assert not await registry.replace_tenant(tenant(revision=2), audit=audit())
    assert not await registry.replace_tenant(tenant(revision=4), audit=audit())
    assert not await registry.replace_tenant(tenant("other", revision=2), audit=audit())
    assert await registry.tenant("acme") == tenant(revision=2, disabled=True)
    assert await registry.tenant("other") is None
    assert len(await registry.audit_log(tenant=None, before=0, limit=9)) == 2


async def test_one_of_many_replaces_it(pair: tuple[Registry, Registry]) -> None:
    """Two operators' changes from the same revision both succeed."""
    await pair[0].create_tenant(tenant(), audit=audit())
    tries = [pair[i % 2].replace_tenant(tenant(revision=2), audit=audit()) for i in range(10)]
    assert sum(await asyncio.gather(*tries)) == 1


async def test_deletion_takes_keys_and_namespaces_along(registry: Registry) -> None:
    """Something of a deleted tenant stays, or something of another one goes."""
    for name in ("acme", "other"):
        await registry.create_tenant(tenant(name), audit=audit())
        await registry.create_namespace(namespace("n", tenant=name), at_most=9, audit=audit())
    await registry.create_key(key("k1"), audit=audit())
    await registry.create_key(key("k2", tenant="other"), audit=audit())
    await registry.create_key(key("k3", tenant=None), audit=audit())
    await registry.touch_keys({"k1": 5, "k2": 6})
    assert await registry.delete_tenant("acme", audit=audit())
    assert not await registry.delete_tenant("acme", audit=audit())
    assert await registry.tenant("acme") is None
    assert await registry.key("k1") is None
    assert await registry.namespace("acme", "n") is None
    assert [each.name for each in await registry.tenants(after="", limit=9)] == ["other"]
    other = await registry.key("k2")
    assert other is not None
    assert other.last_used_at_ms == 6
    assert await registry.key("k3") == key("k3", tenant=None)
    assert await registry.namespace("other", "n") == namespace("n", tenant="other")


async def test_a_tenant_made_again_has_nothing(registry: Registry) -> None:
    """A new tenant inherits keys or namespaces of a deleted one of its name."""
    await registry.create_tenant(tenant(), audit=audit())
    await registry.create_key(key("k1"), audit=audit())
    await registry.touch_keys({"k1": 5})
    await registry.create_namespace(namespace("n"), at_most=1, audit=audit())
    await registry.delete_tenant("acme", audit=audit())
    assert await registry.create_tenant(tenant(), audit=audit()) is Creation.CREATED
    assert await registry.keys("acme", after="", limit=9) == []
    assert await registry.namespaces("acme", after="", limit=9) == []
    assert await registry.create_namespace(namespace("m"), at_most=1, audit=audit()) is Creation.CREATED
    assert await registry.create_key(key("k1"), audit=audit()) is Creation.CREATED
    assert await registry.key("k1") == key("k1")


async def test_nothing_is_made_in_a_tenant_that_goes(pair: tuple[Registry, Registry]) -> None:
    """A key or namespace that is made while its tenant is deleted outlives it."""
    for _ in range(5):
        await pair[0].create_tenant(tenant(), audit=audit())
        await asyncio.gather(
            *(pair[1].create_namespace(namespace(f"n{i}"), at_most=99, audit=audit()) for i in range(5)),
            pair[0].delete_tenant("acme", audit=audit()),
            *(pair[1].create_key(key(f"k{i}"), audit=audit()) for i in range(5)),
        )
        assert await pair[0].namespaces("acme", after="", limit=9) == []
        assert await pair[0].keys("acme", after="", limit=9) == []
        assert [await pair[0].key(f"k{i}") for i in range(5)] == [None] * 5
