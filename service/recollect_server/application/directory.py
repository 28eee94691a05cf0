"""The registry as a server sees it: records from memory, while a watcher makes sure that they still hold."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from recollect_server.application.record_cache import NOT_ASKED, RecordCache, RegistryView
from recollect_server.domain.credentials import Key
from recollect_server.domain.errors import RegistryUnavailableError
from recollect_server.domain.ports import Clock
from recollect_server.domain.registry import NamespaceRecord, Registry
from recollect_server.domain.telemetry import Telemetry
from recollect_server.domain.tenants import Tenant

log = logging.getLogger(__name__)

FLUSH_S = 5.0
"""How often the last use of keys is written down."""

TOUCHED_MAX = 16_384
"""Keys whose last use waits to be written."""

TOUCHED_AT_ONCE = 1024


class Directory:
    """Tenants, keys and namespaces, without I/O for those that were asked for before.

    The watcher asks for the registry's version every `poll_s`. A record is believed while the version under
    which it was read is the one last seen, and that was seen within the last second. So a change is
    effective on every server within a second. While the registry is away, records that are up to date as
    far as can be known are believed for `stale_max_s`; others are refused. Belongs to one event loop.

    Args:
        registry: What all servers share.
        clock: Unix time, for the last use of keys.
        monotonic: For ages.
        poll_s: Between two polls.
        stale_max_s: For how long a server goes on without the registry.
        cached_max: Records of each kind that are remembered.
        telemetry: Is told when a record stood in for a registry that was away.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        clock: Clock,
        monotonic: Callable[[], float],
        poll_s: float,
        stale_max_s: float,
        cached_max: int,
        telemetry: Telemetry,
    ) -> None:
        self._registry = registry
        self._clock = clock
        self._monotonic = monotonic
        self._poll_s = poll_s
        self._view = RegistryView(monotonic, stale_max_s=stale_max_s, telemetry=telemetry)
        self._tenants = RecordCache(registry.tenant, self._view, cached_max=cached_max)
        self._keys = RecordCache(registry.key, self._view, cached_max=cached_max)
        self._namespaces = RecordCache(self._read_namespace, self._view, cached_max=cached_max)
        self._caches = (self._keys, self._tenants, self._namespaces)
        self._is_open = False
        self._polling = asyncio.Lock()
        self._changed = asyncio.Event()
        self._callbacks: list[Callable[[], Awaitable[None]]] = []
        self._touched_ms: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def registry(self) -> Registry:
        """For changes and lists; call `refresh` after a change."""
        return self._registry

    @property
    def unavailable_reason(self) -> str:
        """Why the registry does not answer; "" while it does."""
        return self._view.unavailable_reason

    async def start(self) -> None:
        """Opens the registry and watches it. One that is away now is looked for until it is there.

        Raises:
            ValueError: It is not usable at all.
        """
        try:
            await self.refresh()
        except RegistryUnavailableError as error:
            log.warning("starting without the registry: %s", error)
        loops = (self._watch, self._tell_of_changes, self._write_down_uses)
        self._tasks = [asyncio.create_task(loop()) for loop in loops]

    async def stop(self) -> None:
        """Stops watching, writes down the last use of keys, and closes the registry."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for cache in self._caches:
            await cache.stop()
        if self._is_open:
            await self._survive(self._flush, "writing down the last use of keys")
            await self._registry.close()
            self._is_open = False

    async def tenant(self, name: str) -> Tenant | None:
        """The tenant, or None.

        Raises:
            RegistryUnavailableError: That cannot be told now.
        """
        return await self._tenants.get(name)

    async def key(self, key_id: str) -> Key | None:
        """The key, or None.

        Raises:
            RegistryUnavailableError: That cannot be told now.
        """
        return await self._keys.get(key_id)

    async def namespace(self, tenant: str, name: str) -> NamespaceRecord | None:
        """The tenant's namespace of this name, or None.

        Raises:
            RegistryUnavailableError: That cannot be told now.
        """
        return await self._namespaces.get((tenant, name))

    async def refresh(self) -> None:
        """Sees every change that was made before this was called.

        Raises:
            RegistryUnavailableError: The registry does not answer.
        """
        async with self._polling:  # a poll under way may have been answered before the change
            asked_at_s = self._monotonic()
            try:
                version = await self._ask()
            except RegistryUnavailableError as error:
                self._note_absence(f"{error}")
                raise
            if self._view.unavailable_reason not in ("", NOT_ASKED):
                log.info("the registry answers")
            if self._view.confirm(version, asked_at_s):
                self._changed.set()

    def on_change(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Has `callback` called after a change was seen. Changes that follow fast may share one call."""
        self._callbacks.append(callback)

    def touch(self, key_id: str) -> None:
        """Notes that a key was used now; it is written down within seconds."""
        if len(self._touched_ms) < TOUCHED_MAX or key_id in self._touched_ms:
            self._touched_ms[key_id] = int(self._clock() * 1000)

    async def _read_namespace(self, name: tuple[str, str]) -> NamespaceRecord | None:
        return await self._registry.namespace(*name)

    async def _ask(self) -> str:
        try:
            if not self._is_open:
                await self._registry.open()
                self._is_open = True
            return await self._registry.version()
        except RegistryUnavailableError:
            raise
        except Exception as error:
            if not self._is_open and isinstance(error, ValueError):
                raise  # no waiting will make it usable
            raise RegistryUnavailableError(f"the registry fails: {type(error).__name__}: {error}") from error

    def _note_absence(self, reason: str) -> None:
        if not self._view.unavailable_reason:
            log.error("%s", reason)
        self._view.unavailable_reason = reason
        for cache in self._caches:
            cache.give_up()

    # ---- tasks ----

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            with contextlib.suppress(Exception):  # it was logged when it began, and nothing ends the watch
                await self.refresh()

    async def _tell_of_changes(self) -> None:
        """Apart from the watcher, which must not wait for what others do about a change."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            for callback in self._callbacks:
                await self._survive(callback, "acting on a change of the registry")
            for cache in self._caches:
                await self._survive(cache.renew, "reading records again")

    async def _write_down_uses(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            await self._survive(self._flush, "writing down the last use of keys")

    async def _flush(self) -> None:
        # What is used while this writes waits for the next time: or it would write without an end.
        touched_ms = list(self._touched_ms.items())
        for first in range(0, len(touched_ms), TOUCHED_AT_ONCE):
            part = touched_ms[first : first + TOUCHED_AT_ONCE]
            await self._registry.touch_keys(dict(part))
            for key_id, at_ms in part:
                if self._touched_ms.get(key_id) == at_ms:  # or it was used again meanwhile
                    del self._touched_ms[key_id]

    async def _survive(self, act: Callable[[], Awaitable[None]], doing: str) -> None:
        try:
            await act()
        except RegistryUnavailableError as error:
            log.debug("%s: %s", doing, error)  # polls tell when it began and ended
        except Exception:
            log.exception("%s failed", doing)
