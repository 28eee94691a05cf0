"""Namespaces: their place in a tenant, and their number."""

from __future__ import annotations

import asyncio
import dataclasses
import json

import pytest

from recollect_server.domain.registry import Creation, NamespaceRecord, Registry
from recollect_server.domain.spec import IndexChoice
from recollect_server.registry import records
from tests.contract.registry.samples import audit, namespace, tenant


@pytest.fixture(autouse=True)
async def acme(registry: Registry) -> None:
    """Two tenants to have namespaces."""
    await registry.create_tenant(tenant(), audit=audit())
    await registry.create_tenant(tenant("other"), audit=audit())


async def test_what_is_created_is_found_by_its_tenant_alone(registry: Registry) -> None:
    """A namespace comes back changed, or another tenant finds it."""
    made = namespace("run-7")
    assert await registry.create_namespace(made, at_most=9, audit=audit()) is Creation.CREATED
    assert await registry.namespace("acme", "run-7") == made
    for whose, name in (("other", "run-7"), ("", "run-7"), ("acme", "run-"), ("acme", "")):
        assert await registry.namespace(whose, name) is None
    assert await registry.namespaces("other", after="", limit=9) == []


async def test_what_an_earlier_version_wrote_asks_for_the_defaults(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an upgrade the namespaces of before cannot be read, or ask for an index that nobody asked for."""
    encode = records.encode_namespace

    def encode_as_before(record: NamespaceRecord) -> str:
        written = json.loads(encode(record))
        del written["spec"]["index"], written["spec"]["recall"]
        return json.dumps(written)

    monkeypatch.setattr(records, "encode_namespace", encode_as_before)
    made = namespace("n")
    assert await registry.create_namespace(made, at_most=9, audit=audit()) is Creation.CREATED
    asked = dataclasses.replace(made.spec, index=IndexChoice.AUTO, recall=0.95)
    expected = dataclasses.replace(made, spec=asked)
    assert await registry.namespace("acme", "n") == expected
    assert await registry.namespaces("acme", after="", limit=9) == [expected]


async def test_a_name_is_given_once_in_a_tenant(registry: Registry) -> None:
    """A second namespace of a name replaces the first, or tenants take names from each other."""
    await registry.create_namespace(namespace("n", uid="first"), at_most=9, audit=audit())
    again = namespace("n", uid="second")
    assert await registry.create_namespace(again, at_most=9, audit=audit()) is Creation.EXISTS
    # What exists is told so, also where no further one is allowed.
    assert await registry.create_namespace(again, at_most=1, audit=audit()) is Creation.EXISTS
    theirs = namespace("n", tenant="other", uid="third")
    assert await registry.create_namespace(theirs, at_most=1, audit=audit()) is Creation.CREATED
    assert await registry.namespace("acme", "n") == namespace("n", uid="first")
    assert await registry.namespace("other", "n") == theirs


async def test_a_namespace_needs_its_tenant(registry: Registry) -> None:
    """A namespace of nobody is stored."""
    record = namespace("n", tenant="nobody")
    assert await registry.create_namespace(record, at_most=9, audit=audit()) is Creation.NO_TENANT
    assert await registry.namespace("nobody", "n") is None


async def test_one_of_two_creates_it(pair: tuple[Registry, Registry]) -> None:
    """Two servers both make the same namespace, each with a uid of its own."""
    for number in range(5):
        records = [namespace(f"n{number}", uid=uid) for uid in ("a", "b")]
        outcomes = await asyncio.gather(
            *(
                registry.create_namespace(record, at_most=9, audit=audit())
                for registry, record in zip(pair, records, strict=True)
            )
        )
        assert set(outcomes) == {Creation.CREATED, Creation.EXISTS}
        made = records[outcomes.index(Creation.CREATED)]
        assert await pair[0].namespace("acme", f"n{number}") == made
        assert await pair[1].namespace("acme", f"n{number}") == made


async def test_no_more_than_allowed_under_concurrent_creates(pair: tuple[Registry, Registry]) -> None:
    """Creates at the same time get past the quota, or are refused below it."""
    tries = [pair[i % 2].create_namespace(namespace(f"n{i}"), at_most=7, audit=audit()) for i in range(20)]
    outcomes = await asyncio.gather(*tries)
    assert sorted(each.name for each in outcomes) == ["CREATED"] * 7 + ["FULL"] * 13
    found = {each.name for each in await pair[0].namespaces("acme", after="", limit=99)}
    assert found == {f"n{i}" for i, outcome in enumerate(outcomes) if outcome is Creation.CREATED}


async def test_deleting_makes_room(registry: Registry) -> None:
    """A deleted namespace still counts, or deleting frees more than one."""
    for name in ("a", "b"):
        await registry.create_namespace(namespace(name), at_most=2, audit=audit())
    assert await registry.create_namespace(namespace("c"), at_most=2, audit=audit()) is Creation.FULL
    assert not await registry.delete_namespace("acme", "c", audit=audit())
    assert not await registry.delete_namespace("other", "a", audit=audit())
    assert await registry.delete_namespace("acme", "a", audit=audit())
    assert not await registry.delete_namespace("acme", "a", audit=audit())
    assert await registry.create_namespace(namespace("c"), at_most=2, audit=audit()) is Creation.CREATED
    assert await registry.create_namespace(namespace("d"), at_most=2, audit=audit()) is Creation.FULL
    assert [each.name for each in await registry.namespaces("acme", after="", limit=9)] == ["b", "c"]


async def test_names_with_every_character_that_is_allowed(registry: Registry) -> None:
    """A name with a sign that the registry's own language uses is lost, or spells another one."""
    names = ["a", "a.b", "a_b", "a:b", "a/b", "a@b", "a+b", "a-b", "A", "0", "a:", "a:b:c", "a" * 255]
    for name in names:
        made = await registry.create_namespace(namespace(name, uid=name), at_most=99, audit=audit())
        assert made is Creation.CREATED
    found = [each.name for each in await registry.namespaces("acme", after="", limit=99)]
    assert found == sorted(names)  # ASCII: by byte and by character are the same
    for position, name in enumerate(found):
        assert await registry.namespace("acme", name) == namespace(name, uid=name)
        rest = await registry.namespaces("acme", after=name, limit=99)
        assert [each.name for each in rest] == found[position + 1 :]
        assert await registry.namespaces("other", after="", limit=9) == []


async def test_pages_go_on_where_a_deleted_one_stood(registry: Registry) -> None:
    """A cursor is of no use once its namespace is deleted."""
    for name in "abcd":
        await registry.create_namespace(namespace(name), at_most=9, audit=audit())
    first = await registry.namespaces("acme", after="", limit=2)
    await registry.delete_namespace("acme", first[-1].name, audit=audit())
    rest = await registry.namespaces("acme", after=first[-1].name, limit=9)
    assert [each.name for each in rest] == ["c", "d"]
