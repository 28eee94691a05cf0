"""What Redis 6 does otherwise: a real Redis, and between it and the registry what an older one says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from recollect_server.registry.redis import RedisRegistry
from tests.contract.registry.samples import audit, key, tenant
from tests.redis_server import RedisServer, require_redis

PATIENT_S = 20.0

NO_FLAGS = b"-ERR Error compiling script (new function): user_script:1: unexpected symbol near '#'\r\n"
ONE_NAME = b"-ERR Unknown subcommand or wrong number of arguments for 'get'. Try CONFIG HELP.\r\n"
WHICH_SCRIPT = (
    b"-ERR Error running script (call to f_94228dead632bdbb46222b9b1f1913e54997c90c): @user_script:6: "
)
"""As Redis 6.2.14 says it."""


@pytest.fixture(name="redis_7")
def a_redis() -> Iterator[RedisServer]:
    """What stands behind the older one."""
    require_redis()
    with RedisServer() as running:
        yield running


@pytest_asyncio.fixture(name="older")
async def an_older_redis(redis_7: RedisServer) -> AsyncIterator[RedisRegistry]:
    """A registry in it, not open."""

    async def ask(reader: asyncio.StreamReader, to: asyncio.StreamWriter, back: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(2**20):
            if b"\r\n#!lua" in chunk:
                back.write(NO_FLAGS)
            elif b"\r\nCONFIG\r\n" in chunk and not chunk.startswith(b"*3\r\n"):
                back.write(ONE_NAME)
            else:
                to.write(chunk)
        to.close()

    async def answer(reader: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(2**20):
            to.write(chunk.replace(b"-WRONGTYPE ", WHICH_SCRIPT + b"WRONGTYPE "))
        to.close()

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_connection("127.0.0.1", redis_7.port)
        await asyncio.gather(ask(reader, to_redis, writer), answer(from_redis, writer))

    listener = await asyncio.start_server(between, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    url = redis_7.url.replace(f":{redis_7.port}/", f":{port}/")
    registry = RedisRegistry(url, ca_file=None, timeout_s=PATIENT_S)
    yield registry
    await registry.close()
    listener.close()


async def test_keys_are_still_stopped(older: RedisRegistry) -> None:
    """With a Redis that knows no flags of scripts no key can be revoked, full or not."""
    await older.open()
    await older.create_tenant(tenant(), audit=audit())
    await older.create_key(key("k1"), audit=audit())
    for _ in range(2):
        assert await older.replace_key(key("k1", revoked=True), audit=audit("stopped"))
    assert await older.key("k1") == key("k1", revoked=True)


async def test_a_forgetful_one_is_warned_of(
    older: RedisRegistry, redis_7: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A Redis that is asked for several settings at once tells none: nobody hears what can be lost."""
    assert redis_7.command("CONFIG", "SET", "appendonly", "no") == "+OK"
    with caplog.at_level(logging.WARNING, "recollect_server"):
        await older.open()
    assert "without appendonly" in caplog.text


async def test_something_else_under_our_name_is_told(older: RedisRegistry, redis_7: RedisServer) -> None:
    """A Redis that others use in our place looks as if it were away."""
    assert redis_7.command("SET", "recollect:registry", "mine") == "+OK"
    with pytest.raises(ValueError, match="something else"):
        await older.open()
