"""The way to Redis: address, password, TLS, time limits, and what becomes of its errors."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
import ssl
import time
from pathlib import Path
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from recollect_server.domain.errors import RegistryUnavailableError
from recollect_server.registry.redis_scripts import ALSO_IF_FULL, EMPTIED

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 32
"""Calls at one time; more wait for their turn."""
ATTEMPTS = 2
"""A connection may have been cut while nobody used it."""
OPEN_PAUSES_S = (0.1, 0.3)
"""Between the attempts to open it: a Redis that starts together with the server is up a moment later."""
FULL_TOLD_EVERY_S = 60.0
"""How often the log says that Redis is full, however many changes it refuses meanwhile."""


class RedisConnection:
    """Runs scripts at one Redis, within a time limit each, and connects again whenever it has to.

    What must not run twice is not sent twice: if the connection is cut before the reply, nobody can tell here
    whether the script ran. That is an error then, and the caller decides.

    Args:
        url: redis://user:password@host:port/number or rediss://... for TLS.
        ca_file: PEM of the authority that signed Redis' certificate; None: those that the system trusts.
        timeout_s: For one call, with connecting.

    Raises:
        ValueError: The URL or the CA file is not usable. The message holds no password.
    """

    def __init__(self, url: str, *, ca_file: Path | None, timeout_s: float) -> None:
        self.address = _address(url, ca_file)
        self._url = url
        self._ca_file = ca_file
        self._timeout_s = timeout_s
        self._client: Redis | None = None
        self._answers = True
        self._full_told_s = -math.inf

    async def open(self, script: str, *arguments: str | int) -> object:
        """Connects and runs the first script, which may be sent again.

        Raises:
            ValueError: Redis refuses the password or its certificate is not trusted.
            RegistryUnavailableError: It cannot be reached.
        """
        if self._client is None:
            self._client = Redis.from_pool(self._pool())
        try:
            for pause_s in OPEN_PAUSES_S:
                try:
                    return await self._bounded(script, arguments)
                except (TimeoutError, RedisError, OSError) as error:
                    self._refuse_for_good(error)
                    await asyncio.sleep(pause_s)
            return await self._run(script, arguments, attempts=1)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Ends all connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def run(self, script: str, *arguments: str | int) -> object:
        """Runs a script that may run twice; sends it again if the connection was cut.

        Raises:
            RegistryUnavailableError: Redis cannot be reached or cannot answer.
        """
        return await self._run(script, arguments, attempts=ATTEMPTS)

    async def run_once(self, script: str, *arguments: str | int) -> object:
        """Runs a script that must not run twice.

        Raises:
            RegistryUnavailableError: Redis cannot be reached or refuses; the change may have happened or not.
        """
        return await self._run(script, arguments, attempts=1)

    async def warn_if_forgetful(self) -> None:
        """Logs a warning if Redis says that it may lose changes that it acknowledged."""
        client = self._client
        if client is None:
            return
        configured: dict[str | None, str | None] = {}
        try:
            async with asyncio.timeout(self._timeout_s):
                for name in ("appendonly", "appendfsync", "maxmemory-policy"):
                    configured |= await client.config_get(name)  # Redis before 7.0 takes one name at a time
        except (TimeoutError, RedisError, OSError):
            return  # many providers forbid the question
        if configured.get("appendonly") != "yes":
            log.warning(
                "Redis at %s runs without appendonly: when it stops, changes that were acknowledged are lost",
                self.address,
            )
        elif configured.get("appendfsync") != "always":
            log.warning(
                "Redis at %s runs with appendfsync %s: when its machine stops, the last changes that were "
                "acknowledged may be lost; with always they are not",
                self.address,
                configured.get("appendfsync"),
            )
        policy = str(configured.get("maxmemory-policy"))
        if policy.startswith("allkeys-"):
            log.warning(
                "Redis at %s runs with maxmemory-policy %s: when it is full, it drops tenants and keys; "
                "set noeviction",
                self.address,
                policy,
            )

    async def _run(self, script: str, arguments: tuple[str | int, ...], *, attempts: int) -> object:
        while True:
            attempts -= 1
            try:
                return await self._bounded(script, arguments)
            except (TimeoutError, RedisError, OSError) as error:
                cut = isinstance(error, RedisConnectionError)
                if not cut or attempts == 0 or isinstance(error, AuthenticationError | BusyLoadingError):
                    raise self._unavailable(error) from error

    async def _bounded(self, script: str, arguments: tuple[str | int, ...]) -> object:
        client = self._client
        if client is None:
            raise RegistryUnavailableError("the registry is not open")
        digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        reply: object
        # The client's own limits are for connecting and for each reply; this one is for all together.
        async with asyncio.timeout(self._timeout_s):
            try:
                reply = await client.evalsha(digest, 0, *arguments)
            except NoScriptError:  # a Redis that was started anew; it ran nothing
                reply = await _sent_whole(client, script, arguments)
        if not self._answers:
            log.info("Redis at %s answers again", self.address)
        self._answers = True
        return reply

    def _pool(self) -> BlockingConnectionPool:
        arguments: dict[str, object] = {}
        if self._url.startswith("rediss:"):
            arguments["ssl_min_version"] = ssl.TLSVersion.TLSv1_2
            if self._ca_file is not None:
                arguments["ssl_ca_certs"] = str(self._ca_file)
        return BlockingConnectionPool.from_url(
            self._url,
            max_connections=CONNECTIONS_MAX,
            timeout=None,  # waiting for one counts towards the call's own limit
            socket_timeout=self._timeout_s,
            socket_connect_timeout=self._timeout_s,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
            protocol=2,
            driver_info=None,
            **arguments,
        )

    def _refuse_for_good(self, error: BaseException) -> None:
        if isinstance(error, AuthenticationError):
            raise ValueError(f"Redis at {self.address} refuses the user or the password") from None
        if isinstance(error, NoPermissionError):
            raise ValueError(
                f"Redis at {self.address} does not let this user do what a registry needs: scripts, and all "
                "commands on keys that begin with recollect:"
            ) from None
        # Not in front: Redis before 7.0 says first which script it was.
        if isinstance(error, ResponseError) and "WRONGTYPE " in str(error):
            raise ValueError(f"Redis at {self.address} holds something else as recollect:registry") from None
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise ValueError(
                    f"the certificate of Redis at {self.address} is not trusted: {cause.verify_message}"
                ) from None
            cause = cause.__cause__ or cause.__context__

    def _unavailable(self, error: BaseException) -> RegistryUnavailableError:
        # Redis before 7.0 has other words in front where it was a script that found no room.
        if isinstance(error, OutOfMemoryError) or "-OOM " in str(error):
            return self._full()
        # Redis' own words go to the log, not to whoever calls; and once, however many calls there are.
        level = logging.WARNING if self._answers else logging.DEBUG
        log.log(level, "Redis at %s: %s: %s", self.address, type(error).__name__, error)
        self._answers = False
        if isinstance(error, ResponseError) and str(error).startswith(EMPTIED):
            return RegistryUnavailableError(
                "the registry has lost its data; restore it, or restart a server to begin with an empty one"
            )
        return RegistryUnavailableError("the registry cannot be reached now")

    def _full(self) -> RegistryUnavailableError:
        # It answers, and goes on to: this is no outage, and no end of one.
        now_s = time.monotonic()
        if now_s - self._full_told_s >= FULL_TOLD_EVERY_S:
            self._full_told_s = now_s
            log.error(
                "Redis at %s is full and refuses changes of the registry: raise its maxmemory, or delete "
                "what else it holds",
                self.address,
            )
        return RegistryUnavailableError(
            "the registry is full: whoever runs it has to raise maxmemory of its Redis, or delete what else "
            "that holds"
        )


async def _sent_whole(client: Redis, script: str, arguments: tuple[str | int, ...]) -> object:
    """Runs a script that Redis does not know yet."""
    reply: object
    try:
        reply = await client.eval(script, 0, *arguments)
    except ResponseError as error:
        # Redis before 7.0 takes the line for Lua, and finds none. It ran nothing.
        if not (script.startswith(ALSO_IF_FULL) and "Error compiling script" in str(error)):
            raise
        reply = await client.eval(script.removeprefix(ALSO_IF_FULL), 0, *arguments)
    return reply


def _address(url: str, ca_file: Path | None) -> str:
    """Host and port, for people. Messages never hold the URL: it has a password."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 6379
    except ValueError:
        raise ValueError(
            "the registry's URL is malformed; escape / @ : ? # in its password as %2F ..."
        ) from None
    if parts.scheme not in ("redis", "rediss") or not host:
        raise ValueError(
            "the registry's URL must be redis://[user:password@]host[:port][/number] or rediss://"
        )
    if parts.query or parts.fragment or not re.fullmatch(r"/?\d*", parts.path):
        raise ValueError("the registry's URL may end with a database's number, as in /0, and nothing else")
    if ca_file is not None:
        if parts.scheme != "rediss":
            raise ValueError("the registry has a CA file, but its URL is not rediss://")
        try:
            ca_file.open("rb").close()
        except OSError as error:
            raise ValueError(f"the registry's CA file {ca_file} cannot be read: {error.strerror}") from error
    return f"{host}:{port}"
