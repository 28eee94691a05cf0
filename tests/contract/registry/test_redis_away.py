"""Redis killed, frozen, emptied, refusing; and back again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from recollect_server.domain.errors import RegistryUnavailableError
from recollect_server.domain.registry import Answer, Creation, Registry
from recollect_server.registry.redis import RedisRegistry
from tests.contract.registry.conftest import place_in_redis
from tests.contract.registry.samples import audit, key, namespace, tenant
from tests.redis_server import RedisServer, require_redis

SHORT_S = 0.5


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """One to be treated badly."""
    require_redis()
    with RedisServer() as running:
        yield running


@pytest_asyncio.fixture
async def open_registry(server: RedisServer) -> AsyncIterator[Registry]:
    """Open, and patient: a busy machine is not a failure."""
    made = place_in_redis(server).make()
    await made.open()
    yield made
    await made.close()


def at(url: str, *, ca_file: Path | None = None) -> RedisRegistry:
    """A registry at this address that gives up soon."""
    return RedisRegistry(url, ca_file=ca_file, timeout_s=SHORT_S)


async def test_killed_and_started_again_under_load(server: RedisServer, open_registry: Registry) -> None:
    """A change that was acknowledged is lost, or the registry does not find back by itself."""
    registry = open_registry
    await registry.create_tenant(tenant(), audit=audit())
    acknowledged: set[str] = set()
    refused: list[str] = []
    enough = asyncio.Event()

    async def write(writer: int) -> None:
        for number in range(100_000):
            name = f"{writer}-{number}"
            try:
                created = await registry.create_namespace(namespace(name), at_most=2**30, audit=audit(name))
            except RegistryUnavailableError:
                refused.append(name)
                if len(refused) >= 40:
                    return
                await asyncio.sleep(0)
            else:
                assert created is Creation.CREATED
                acknowledged.add(name)
                if len(acknowledged) >= 200:
                    enough.set()

    writers = [asyncio.create_task(write(writer)) for writer in range(4)]
    await enough.wait()
    await asyncio.to_thread(server.kill)
    await asyncio.gather(*writers)
    with pytest.raises(RegistryUnavailableError):
        await registry.version()
    await asyncio.to_thread(server.start_again)
    await registry.version()
    found = {each.name for each in await registry.namespaces("acme", after="", limit=100_000)}
    assert acknowledged <= found
    assert found <= acknowledged | set(refused)
    log = {entry.audit.action for entry in await registry.audit_log(tenant="acme", before=0, limit=100_000)}
    assert log - {"test"} == found


async def test_stopped_and_started_again_in_order(server: RedisServer, open_registry: Registry) -> None:
    """An orderly restart of Redis needs a restart of the server, or the first change after it fails."""
    await open_registry.create_tenant(tenant(), audit=audit())
    version = await open_registry.version()
    await asyncio.to_thread(server.stop)
    for _ in range(3):
        with pytest.raises(RegistryUnavailableError) as error:
            await open_registry.create_key(key("k1"), audit=audit())
        assert server.password not in str(error.value)
    await asyncio.to_thread(server.start_again)
    assert await open_registry.version() == version
    await asyncio.to_thread(server.stop)
    await asyncio.to_thread(server.start_again)
    assert await open_registry.create_key(key("k1"), audit=audit()) is Creation.CREATED


async def test_a_redis_that_hangs_is_given_up(server: RedisServer) -> None:
    """A call to a Redis that does not answer waits for ever, or its late answer is given to another call."""
    registry = at(server.url)
    await registry.open()
    await registry.create_tenant(tenant(), audit=audit())
    server.freeze()
    for call in (registry.tenant("acme"), registry.version(), registry.append_audit(audit())):
        with pytest.raises(RegistryUnavailableError):
            await call
    server.thaw()
    for _ in range(100):
        try:
            assert await registry.tenant("nobody") is None
            break
        except RegistryUnavailableError:
            await asyncio.sleep(0.05)
    assert await registry.tenant("acme") == tenant()
    assert await registry.key("k1") is None
    await registry.close()


async def test_an_emptied_redis_is_not_taken_for_an_empty_registry(
    server: RedisServer, open_registry: Registry
) -> None:
    """A Redis that lost its data makes servers forget all tenants and drop what they hold."""
    await open_registry.create_tenant(tenant(), audit=audit())
    before = await open_registry.version()
    assert server.command("FLUSHALL") == "+OK"
    for call in (
        open_registry.tenant("acme"),
        open_registry.version(),
        open_registry.create_tenant(tenant(), audit=audit()),
    ):
        with pytest.raises(RegistryUnavailableError, match="lost its data"):
            await call
    other = place_in_redis(server).make()
    await other.open()
    assert await open_registry.tenant("acme") is None
    assert await open_registry.version() != before
    await other.close()


async def test_a_redis_that_is_not_there(server: RedisServer) -> None:
    """Opening hangs, or takes a Redis that is away for one that is wrong."""
    server.stop()
    registry = at(server.url)
    with pytest.raises(RegistryUnavailableError, match="cannot be reached"):
        await registry.open()
    server.start_again()
    await registry.open()
    await registry.version()
    await registry.close()


async def test_a_wrong_password_is_told_and_not_shown(server: RedisServer) -> None:
    """A server with a wrong password tries for ever, or writes passwords into its log."""
    for url in (
        f"redis://:wrong-secret@127.0.0.1:{server.port}/0",
        f"redis://nobody:wrong-secret@127.0.0.1:{server.port}",
        f"redis://127.0.0.1:{server.port}",
    ):
        with pytest.raises(ValueError, match="refuses the user or the password") as refused:
            await at(url).open()
        assert "secret" not in str(refused.value)
        assert f"127.0.0.1:{server.port}" in str(refused.value)


async def test_a_user_who_may_not_enough_is_told(server: RedisServer) -> None:
    """A Redis user without the rights is taken for a Redis that is away."""
    assert server.command("ACL", "SETUSER", "little", "on", ">pw-secret", "+ping") == "+OK"
    with pytest.raises(ValueError, match="does not let this user"):
        await at(f"redis://little:pw-secret@127.0.0.1:{server.port}").open()
    # Enough, but no CONFIG: works, and does not complain.
    rules = ("on", ">pw-secret", "~recollect:*", "+@all", "-@admin", "-@dangerous")
    assert server.command("ACL", "SETUSER", "enough", *rules) == "+OK"
    registry = at(f"redis://enough:pw-secret@127.0.0.1:{server.port}")
    await registry.open()
    assert await registry.create_tenant(tenant(), audit=audit()) is Creation.CREATED
    assert await registry.tenant("acme") == tenant()
    await registry.close()


async def test_a_full_redis_refuses_whole_changes(server: RedisServer, open_registry: Registry) -> None:
    """A Redis without memory carries out half of a change."""
    registry = open_registry
    await registry.create_tenant(tenant(), audit=audit())
    await registry.create_key(key("k1"), audit=audit())
    await registry.create_namespace(namespace("n"), at_most=9, audit=audit())
    version = await registry.version()
    log = await registry.audit_log(tenant=None, before=0, limit=99)
    assert server.command("CONFIG", "SET", "maxmemory", "1") == "+OK"
    for change in (
        registry.create_tenant(tenant("other"), audit=audit()),
        registry.create_key(key("k2"), audit=audit()),
        registry.rotate_key(key("k1", revoked=True), key("k2"), audit=audit()),
        registry.create_namespace(namespace("m"), at_most=9, audit=audit()),
        registry.delete_namespace("acme", "n", audit=audit()),
        registry.append_audit(audit()),
        registry.remember("r", Answer("f", 201, ""), tenant="acme", for_s=60),
    ):
        with pytest.raises(RegistryUnavailableError, match="the registry is full"):
            await change
    # Reading goes on.
    assert await registry.version() == version
    assert await registry.audit_log(tenant=None, before=0, limit=99) == log
    assert await registry.tenants(after="", limit=9) == [tenant()]
    assert await registry.keys("acme", after="", limit=9) == [key("k1")]
    assert await registry.namespaces("acme", after="", limit=9) == [namespace("n")]
    assert server.command("CONFIG", "SET", "maxmemory", "0") == "+OK"
    assert await registry.delete_tenant("acme", audit=audit())


async def test_a_full_redis_lets_keys_and_tenants_be_stopped(
    server: RedisServer, open_registry: Registry
) -> None:
    """Who fills the registry with a leaked key cannot be stopped: neither the key nor the tenant."""
    registry = open_registry
    for name in ("acme", "other"):
        await registry.create_tenant(tenant(name), audit=audit())
    await registry.create_key(key("k1"), audit=audit())
    await registry.create_key(key("op", tenant=None), audit=audit())
    assert server.command("CONFIG", "SET", "maxmemory", "1") == "+OK"
    for _ in range(2):  # Redis knows none of these scripts at first
        version = await registry.version()
        assert await registry.replace_key(key("k1", revoked=True), audit=audit("stopped"))
        assert await registry.replace_key(key("op", tenant=None, revoked=True), audit=audit("stopped"))
        assert await registry.version() != version
    assert await registry.replace_tenant(tenant(revision=2, disabled=True), audit=audit("stopped"))
    assert await registry.delete_tenant("other", audit=audit("stopped"))
    assert await registry.key("k1") == key("k1", revoked=True)
    assert await registry.tenants(after="", limit=9) == [tenant(revision=2, disabled=True)]
    log = await registry.audit_log(tenant=None, before=0, limit=6)
    assert [entry.audit.action for entry in log] == ["stopped"] * 6


async def test_a_full_redis_is_told_of_once(
    server: RedisServer, open_registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """A full Redis looks as if it were away, and each refused change writes two lines into the log."""
    assert server.command("CONFIG", "SET", "maxmemory", "1") == "+OK"
    with caplog.at_level(logging.INFO, "recollect_server"):
        for _ in range(5):
            with pytest.raises(RegistryUnavailableError, match="raise maxmemory"):
                await open_registry.create_tenant(tenant(), audit=audit())
            await open_registry.version()
    (line,) = caplog.records
    assert (line.levelname, "is full" in line.getMessage()) == ("ERROR", True)
    assert f"127.0.0.1:{server.port}" in line.getMessage()


async def test_an_outage_is_logged_once(
    server: RedisServer, open_registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever calls while Redis is away fills the log, or nobody is told."""
    with caplog.at_level(logging.INFO, "recollect_server"):
        await asyncio.to_thread(server.kill)
        for _ in range(5):
            with pytest.raises(RegistryUnavailableError):
                await open_registry.version()
        assert [each.levelname for each in caplog.records] == ["WARNING"]
        await asyncio.to_thread(server.start_again)
        for _ in range(2):
            await open_registry.version()
        assert [each.levelname for each in caplog.records] == ["WARNING", "INFO"]
        assert server.password not in caplog.text


async def test_something_else_under_our_name_is_told(server: RedisServer) -> None:
    """A Redis that others use in our place fails with an error of its own language."""
    assert server.command("SET", "recollect:registry", "mine") == "+OK"
    with pytest.raises(ValueError, match="something else"):
        await at(server.url).open()


async def test_another_version_is_refused(server: RedisServer) -> None:
    """An old server writes into a registry that it does not understand."""
    server.command("HSET", "recollect:registry", "schema", "2")
    with pytest.raises(ValueError, match="its schema is 2, this version knows 1"):
        await at(server.url).open()


@pytest.mark.parametrize(
    "url",
    [
        "http://:secret@localhost",
        "redis://:secret@localhost:port",
        "redis://:sec/ret@localhost:1",
        "redis://:secret@/0",
        "redis://:secret@localhost/zero",
        "redis://:secret@localhost/0?socket_timeout=99",
        "localhost:6379",
        "rediss://[::secret",
    ],
)
def test_a_wrong_url_is_told_and_not_shown(url: str) -> None:
    """A URL with a mistake is guessed at, or its password gets into the log."""
    with pytest.raises(ValueError, match="registry's URL") as refused:
        at(url)
    assert "sec" not in str(refused.value)


async def test_the_password_may_have_any_character(server: RedisServer) -> None:
    """A password with signs of its own in URLs cannot be used."""
    assert server.command("CONFIG", "SET", "requirepass", "p@ss/w:rd#1%") == "+OK"
    registry = at(f"redis://:p%40ss%2Fw%3Ard%231%25@127.0.0.1:{server.port}/3")
    await registry.open()
    await registry.version()
    await registry.close()


async def test_a_forgetful_redis_is_warned_of(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody is told that acknowledged changes can be lost, or everybody is."""
    with caplog.at_level(logging.WARNING, "recollect_server"):
        for words, warning in (
            (("appendfsync", "always"), ""),
            (("appendfsync", "everysec"), "appendfsync everysec"),
            (("appendonly", "no"), "without appendonly"),
            (("maxmemory-policy", "allkeys-lru"), "drops tenants"),
        ):
            assert server.command("CONFIG", "SET", *words) == "+OK"
            caplog.clear()
            registry = at(server.url)
            await registry.open()
            await registry.close()
            assert (warning in caplog.text) if warning else not caplog.text
            assert server.password not in caplog.text


async def test_tls_with_an_authority_of_its_own(tmp_path: Path) -> None:
    """Redis over TLS does not work, or its certificate is not checked."""
    require_redis()
    with RedisServer(tls=True) as server:
        registry = place_in_redis(server).make()
        await registry.open()
        assert await registry.create_tenant(tenant(), audit=audit()) is Creation.CREATED
        await registry.close()
        with pytest.raises(ValueError, match="is not trusted") as refused:
            await at(server.url).open()
        assert server.password not in str(refused.value)
        plain = server.url.replace("rediss:", "redis:")
        with pytest.raises(RegistryUnavailableError):
            await at(plain).open()
        with pytest.raises(ValueError, match="not rediss"):
            at(plain, ca_file=server.ca_file)
        with pytest.raises(ValueError, match="cannot be read"):
            at(server.url, ca_file=tmp_path / "missing.pem")
