"""The server without its sockets, started, drained and stopped as one."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from recollect_server.application.directory import Directory
from recollect_server.application.dispatch import Dispatcher
from recollect_server.application.namespaces import Namespaces
from recollect_server.domain.audit import SERVER, TENANT_CREATED, Audit
from recollect_server.domain.credentials import Key, digest_of, new_token, parse_key
from recollect_server.domain.errors import RegistryUnavailableError
from recollect_server.domain.registry import Creation
from recollect_server.domain.tenants import Quotas, Tenant
from recollect_server.rpc.endpoint import Endpoint

log = logging.getLogger(__name__)

RECONCILE_S = 2.0
"""At most so often are memories compared with the registry; calls to what was deleted are refused at once."""


ENSURE_S = 1.0
"""How often a registry that was away at the start is looked for, to make the first keys in it."""


@dataclass(frozen=True, slots=True)
class FirstKeys:
    """Who must exist for the server to be of use.

    Attributes:
        tenant: The one tenant of a development server or an embedded memory, or "".
        operator_token: An operator's key, or "".
        operator_file: Where to write a new operator's key if there is none at all; None: nowhere.
    """

    tenant: str = ""
    operator_token: str = field(default="", repr=False)
    operator_file: Path | None = None


class Core:
    """What answers calls, whatever they come over.

    Args:
        endpoint: Of gRPC and embedded calls.
        directory: The registry, watched.
        dispatcher: Of the device.
        namespaces: To free what is deleted elsewhere.
        first: Who is made to exist at the start.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        directory: Directory,
        *,
        dispatcher: Dispatcher,
        namespaces: Namespaces,
        first: FirstKeys,
    ) -> None:
        self.endpoint = endpoint
        self.directory = directory
        self.dispatcher = dispatcher
        self.namespaces = namespaces
        self._first = first
        self._changed = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Opens the registry and watches it. One that is away is waited for, while probes say so.

        Raises:
            ValueError: The registry is not usable, or the operator's key is not one.
        """
        if self._first.operator_token and parse_key(self._first.operator_token) is None:
            raise ValueError("the operator's key is not of the form rk_<16 hex digits>_<64 hex digits>")
        await self.directory.start()
        try:
            await self._ensure_first()
        except RegistryUnavailableError:
            self._tasks.append(asyncio.create_task(self._ensure_first_later()))

        async def changed() -> None:
            self._changed.set()

        self.directory.on_change(changed)
        self._tasks.append(asyncio.create_task(self._reconcile()))

    def drain(self) -> None:
        """Takes no new calls; those under way go on."""
        self.endpoint.is_draining = True

    async def stop(self) -> None:
        """Drains, waits for what is queued, and closes the registry."""
        self.drain()
        await asyncio.to_thread(self.dispatcher.drain)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.directory.stop()

    async def _reconcile(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                if not await self.namespaces.reconcile():
                    self._changed.set()  # nothing else would tell of the change once the registry is back
            except Exception:
                log.exception("comparing memories with the registry failed")
            await asyncio.sleep(RECONCILE_S)

    async def _ensure_first(self) -> None:
        """Makes those exist without whom the server is of no use."""
        if self._first.tenant:
            await self._ensure_tenant(self._first.tenant)
        if self._first.operator_token:
            await self._ensure_operator(self._first.operator_token)
        elif not self._first.tenant:
            await self._ensure_any_operator(self._first.operator_file)

    async def _ensure_first_later(self) -> None:
        while True:
            await asyncio.sleep(ENSURE_S)
            try:
                await self._ensure_first()
            except RegistryUnavailableError:
                continue
            except (ValueError, OSError) as unusable:
                log.error("nobody can administer this server: %s", unusable)
            return

    async def _ensure_tenant(self, name: str) -> None:
        tenant = Tenant(name, created_at_ms=_now_ms(), quotas=Quotas.unbounded())
        audit = Audit(_now_ms(), SERVER.actor, SERVER.source, TENANT_CREATED, name, name)
        await self.directory.registry.create_tenant(tenant, audit=audit)
        await self.directory.refresh()

    async def _ensure_any_operator(self, path: Path | None) -> None:
        if await self.directory.registry.keys(None, after="", limit=1):
            return
        if path is None:
            raise ValueError(
                "the registry has no operator's key, so nobody could make tenants; give "
                "RECOLLECT_ADMIN__OPERATOR_KEY or RECOLLECT_ADMIN__OPERATOR_KEY_FILE, or a data directory to "
                "write a new one to"
            )
        _, token = new_token()
        # The file first: a key that nobody can read is worse than a file with a key that does not exist. An
        # old file is of a registry that is gone; to write into it would keep its mode, or follow a link.
        path.unlink(missing_ok=True)
        with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(token + "\n")
        await self._ensure_operator(token)
        log.warning("no operator's key existed: a new one was written to %s", path)

    async def _ensure_operator(self, token: str) -> None:
        presented = parse_key(token)
        assert presented is not None  # checked at the start
        digest = digest_of(presented.secret)
        key = Key(presented.key_id, None, digest, frozenset(), "from the settings", _now_ms())
        audit = Audit(_now_ms(), SERVER.actor, SERVER.source, "key.issue", "", key.key_id, "operator")
        made = await self.directory.registry.create_key(key, audit=audit)
        if made is Creation.EXISTS:
            there = await self.directory.registry.key(key.key_id)
            if there is None or there.tenant is not None or there.digest != digest:
                raise ValueError(
                    f"a key {key.key_id!r} with another secret exists in the registry; make a new one"
                )
        await self.directory.refresh()


def _now_ms() -> int:
    return int(time.time() * 1000)
