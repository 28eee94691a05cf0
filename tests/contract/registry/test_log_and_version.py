"""The audit log, the version, and answers to repeats."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from recollect_server.domain.registry import ANSWERS_MAX, Answer, Registry
from tests.contract.registry.conftest import Place
from tests.contract.registry.samples import audit, key, namespace, tenant


async def test_each_change_is_noted_with_itself(registry: Registry) -> None:
    """A change is not in the log, what did not happen is, or the log is out of order."""
    steps: list[Awaitable[object]] = [
        registry.create_tenant(tenant(), audit=audit("1")),
        registry.create_tenant(tenant(), audit=audit("no")),
        registry.replace_tenant(tenant(revision=2), audit=audit("2")),
        registry.replace_tenant(tenant(revision=2), audit=audit("no")),
        registry.create_key(key("k1"), audit=audit("3")),
        registry.create_key(key("k1"), audit=audit("no")),
        registry.create_key(key("k2", tenant="nobody"), audit=audit("no")),
        registry.replace_key(key("k1"), audit=audit("4")),
        registry.replace_key(key("k9"), audit=audit("no")),
        registry.rotate_key(key("k1"), key("k2"), audit=audit("5")),
        registry.rotate_key(key("k9"), key("k8"), audit=audit("no")),
        registry.create_namespace(namespace("n"), at_most=1, audit=audit("6")),
        registry.create_namespace(namespace("m"), at_most=1, audit=audit("no")),
        registry.delete_namespace("acme", "n", audit=audit("7")),
        registry.delete_namespace("acme", "n", audit=audit("no")),
        registry.append_audit(audit("8")),
        registry.delete_tenant("acme", audit=audit("9")),
        registry.delete_tenant("acme", audit=audit("no")),
    ]
    for step in steps:
        await step
    log = await registry.audit_log(tenant=None, before=0, limit=99)
    assert [entry.audit for entry in log] == [audit(str(number)) for number in range(9, 0, -1)]
    numbers = [entry.number for entry in log]
    assert numbers == sorted(set(numbers), reverse=True)
    assert numbers[-1] > 0  # 0 stands for no bound
    # What a tenant did is known when it is gone.
    assert await registry.audit_log(tenant="acme", before=0, limit=99) == log


async def test_the_log_is_read_by_page_and_tenant(registry: Registry) -> None:
    """A page of the log misses an entry, repeats one, or shows a tenant what another did."""
    for number in range(9):
        await registry.append_audit(audit(str(number), tenant=("acme", "other", "")[number % 3]))
    seen: list[str] = []
    before = 0
    while page := await registry.audit_log(tenant=None, before=before, limit=2):
        seen += [entry.audit.action for entry in page]
        before = page[-1].number
    assert seen == list("876543210")
    newest, middle = await registry.audit_log(tenant="acme", before=0, limit=2)
    assert (newest.audit.action, middle.audit.action) == ("6", "3")
    assert [
        e.audit.action for e in await registry.audit_log(tenant="acme", before=middle.number, limit=9)
    ] == ["0"]
    assert [e.audit.action for e in await registry.audit_log(tenant="", before=0, limit=9)] == list("852")
    assert await registry.audit_log(tenant="nobody", before=0, limit=9) == []
    assert await registry.audit_log(tenant=None, before=1, limit=9) == []


async def test_the_version_changes_with_each_change_and_only_then(
    pair: tuple[Registry, Registry],
) -> None:
    """A server does not notice a change of another, or reads everything again for nothing."""
    writer, reader = pair
    changes: list[Callable[[], Awaitable[object]]] = [
        lambda: writer.create_tenant(tenant(), audit=audit()),
        lambda: writer.replace_tenant(tenant(revision=2), audit=audit()),
        lambda: writer.create_key(key("k1"), audit=audit()),
        lambda: writer.create_key(key("op", tenant=None), audit=audit()),
        lambda: writer.rotate_key(key("k1"), key("k2"), audit=audit()),
        lambda: writer.replace_key(key("k1", revoked=True), audit=audit()),
        lambda: writer.create_namespace(namespace("n"), at_most=1, audit=audit()),
        lambda: writer.delete_namespace("acme", "n", audit=audit()),
        lambda: writer.delete_tenant("acme", audit=audit()),
    ]
    versions = [await reader.version()]
    for change in changes:
        await change()
        versions.append(await reader.version())
        assert await reader.version() == versions[-1] == await writer.version()
    assert len(set(versions)) == len(versions)

    await writer.touch_keys({"op": 5})
    await writer.append_audit(audit())
    await writer.remember("r", Answer("f", 201, "{}"), tenant="acme", for_s=60)
    assert not await writer.delete_tenant("acme", audit=audit())
    assert not await writer.replace_key(key("k9"), audit=audit())
    await writer.create_key(key("op", tenant=None), audit=audit())
    await writer.create_namespace(namespace("n"), at_most=1, audit=audit())
    await writer.tenants(after="", limit=9)
    await writer.key("op")
    assert await reader.version() == versions[-1]


async def test_answers_are_remembered_and_replaced(pair: tuple[Registry, Registry]) -> None:
    """A repeat at another server is taken for a new request, or gets the answer to another."""
    first, second = pair
    assert await first.answer("r: 1") is None
    await first.remember("r: 1", Answer("f1", 201, '{"é": "\\n"}', {"ETag": '"1"'}), tenant="acme", for_s=60)
    await first.remember("r: 2", Answer("f2", 409, ""), tenant="acme", for_s=60)
    assert await second.answer("r: 1") == Answer("f1", 201, '{"é": "\\n"}', {"ETag": '"1"'})
    assert await second.answer("r: 2") == Answer("f2", 409, "")
    await second.remember("r: 2", Answer("f3", 200, "x"), tenant="acme", for_s=60)
    assert await first.answer("r: 2") == Answer("f3", 200, "x")


async def test_answers_are_forgotten(place: Place, registry: Registry) -> None:
    """An answer is given for ever, or the wrong one is forgotten."""
    await registry.remember("short", Answer("f", 201, ""), tenant="acme", for_s=1)
    await registry.remember("long", Answer("f", 201, ""), tenant="acme", for_s=3600)
    place.clock.now_s += 1
    for _ in range(400):  # Redis goes by its own clock
        if await registry.answer("short") is None:
            break
        await asyncio.sleep(0.05)
    assert await registry.answer("short") is None
    assert await registry.answer("long") is not None


async def test_answers_do_not_pile_up(pair: tuple[Registry, Registry]) -> None:
    """One tenant's idempotency keys fill the registry, or push out the answers to others."""
    first, second = pair
    await first.remember("r: other", Answer("f", 201, ""), tenant="other", for_s=60)
    await first.remember("r: boss", Answer("f", 201, ""), tenant=None, for_s=60)
    for number in range(ANSWERS_MAX + 3):
        await pair[number % 2].remember(f"r: {number}", Answer("f", 201, ""), tenant="acme", for_s=60)
    await first.remember(f"r: {ANSWERS_MAX}", Answer("again", 201, ""), tenant="acme", for_s=60)
    gone = [number for number in range(9) if await second.answer(f"r: {number}") is None]
    assert gone == [0, 1, 2]
    assert await second.answer(f"r: {ANSWERS_MAX + 2}") is not None
    for kept in ("r: other", "r: boss"):
        assert await second.answer(kept) is not None


async def test_many_calls_at_once(pair: tuple[Registry, Registry]) -> None:
    """Answers of calls at the same time are mixed up."""
    await pair[0].create_tenant(tenant(), audit=audit())
    await asyncio.gather(
        *(
            pair[i % 2].create_namespace(namespace(f"n{i}", uid=str(i)), at_most=99, audit=audit())
            for i in range(80)
        )
    )
    found = await asyncio.gather(*(pair[i % 2].namespace("acme", f"n{i}") for i in range(80)))
    assert [each.uid for each in found if each] == [str(i) for i in range(80)]


async def test_a_call_that_is_given_up_leaves_no_answer_behind(registry: Registry) -> None:
    """The answer to a cancelled call is given to the next one."""
    await registry.create_tenant(tenant(), audit=audit())
    for number in range(40):
        task = asyncio.create_task(registry.tenant("acme"))
        for _ in range(number % 8):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await registry.tenant("nobody") is None
        assert await registry.tenant("acme") == tenant()
