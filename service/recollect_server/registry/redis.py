"""The registry in Redis, shared by many servers."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

from recollect_server.domain.audit import Audit, AuditEntry
from recollect_server.domain.credentials import Key
from recollect_server.domain.registry import ANSWERS_MAX, Answer, Creation, NamespaceRecord
from recollect_server.domain.tenants import Tenant
from recollect_server.registry import records
from recollect_server.registry import redis_scripts as scripts
from recollect_server.registry.redis_connection import RedisConnection

SCHEMA = 1
TOUCHED_AT_ONCE = 1000
"""Keys in one script: Redis does nothing else while it runs."""


class RedisRegistry:
    """Implements the `Registry` port.

    Args:
        url: redis://user:password@host:port/number or rediss://... for TLS.
        ca_file: PEM of the authority that signed Redis' certificate; None: those that the system trusts.
        timeout_s: For one call, with connecting.

    Raises:
        ValueError: The URL or the CA file is not usable. The message holds no password.
    """

    def __init__(self, url: str, *, ca_file: Path | None, timeout_s: float) -> None:
        self._redis = RedisConnection(url, ca_file=ca_file, timeout_s=timeout_s)

    async def open(self) -> None:
        """See `Registry.open`. Warns if Redis may lose changes that it acknowledged."""
        schema = _text(await self._redis.open(scripts.OPEN, SCHEMA, secrets.token_hex(8)))
        if schema != str(SCHEMA):
            await self._redis.close()
            raise ValueError(
                f"the registry in Redis at {self._redis.address} was written by another version of the "
                f"server: its schema is {schema}, this version knows {SCHEMA}"
            )
        await self._redis.warn_if_forgetful()

    async def close(self) -> None:
        """See `Registry.close`."""
        await self._redis.close()

    async def version(self) -> str:
        """See `Registry.version`."""
        return "-".join(_text(part) for part in _items(await self._redis.run(scripts.VERSION)))

    # ---- tenants ----

    async def create_tenant(self, tenant: Tenant, *, audit: Audit) -> Creation:
        """See `Registry.create_tenant`."""
        reply = await self._change(scripts.CREATE_TENANT, audit, tenant.name, records.encode_tenant(tenant))
        return Creation(reply)

    async def tenant(self, name: str) -> Tenant | None:
        """See `Registry.tenant`."""
        found = await self._redis.run(scripts.TENANT, name)
        return None if found is None else records.decode_tenant(_text(found))

    async def tenants(self, *, after: str, limit: int) -> list[Tenant]:
        """See `Registry.tenants`."""
        found = await self._redis.run(scripts.TENANTS, after, limit)
        return [records.decode_tenant(_text(each)) for each in _items(found)]

    async def replace_tenant(self, tenant: Tenant, *, audit: Audit) -> bool:
        """See `Registry.replace_tenant`."""
        arguments = (tenant.name, records.encode_tenant(tenant), tenant.revision - 1)
        return await self._change(scripts.REPLACE_TENANT, audit, *arguments) == 1

    async def delete_tenant(self, name: str, *, audit: Audit) -> bool:
        """See `Registry.delete_tenant`."""
        return await self._change(scripts.DELETE_TENANT, audit, name) == 1

    # ---- keys ----

    async def create_key(self, key: Key, *, audit: Audit) -> Creation:
        """See `Registry.create_key`."""
        arguments = (_whose(key.tenant), key.key_id, records.encode_key(key))
        return Creation(await self._change(scripts.CREATE_KEY, audit, *arguments))

    async def key(self, key_id: str) -> Key | None:
        """See `Registry.key`."""
        found, used = _items(await self._redis.run(scripts.KEY, key_id))
        return None if found is None else _key(found, used)

    async def keys(self, tenant: str | None, *, after: str, limit: int) -> list[Key]:
        """See `Registry.keys`."""
        found = _items(await self._redis.run(scripts.KEYS, _whose(tenant), after, limit))
        return [_key(text, used) for text, used in zip(found[::2], found[1::2], strict=True)]

    async def replace_key(self, key: Key, *, audit: Audit) -> bool:
        """See `Registry.replace_key`; a key of another tenant is none of its id."""
        arguments = (_whose(key.tenant), key.key_id, records.encode_key(key))
        return await self._change(scripts.REPLACE_KEY, audit, *arguments) == 1

    async def rotate_key(self, old: Key, new: Key, *, audit: Audit) -> bool:
        """See `Registry.rotate_key`; False, too, if the new one's id is taken."""
        if old.tenant != new.tenant:
            raise ValueError("the old and the new key belong to different tenants")
        arguments = (old.key_id, records.encode_key(old), new.key_id, records.encode_key(new))
        return await self._change(scripts.ROTATE_KEY, audit, _whose(old.tenant), *arguments) == 1

    async def touch_keys(self, last_used_at_ms: Mapping[str, int]) -> None:
        """See `Registry.touch_keys`; the latest use stays."""
        uses = list(last_used_at_ms.items())
        for first in range(0, len(uses), TOUCHED_AT_ONCE):
            arguments: list[str | int] = []
            for use in uses[first : first + TOUCHED_AT_ONCE]:
                arguments.extend(use)
            # As the latest use stays, it does no harm if it runs twice.
            await self._redis.run(scripts.TOUCH_KEYS, *arguments)

    # ---- namespaces ----

    async def create_namespace(self, record: NamespaceRecord, *, at_most: int, audit: Audit) -> Creation:
        """See `Registry.create_namespace`."""
        arguments = (record.tenant, record.name, records.encode_namespace(record), at_most)
        return Creation(await self._change(scripts.CREATE_NAMESPACE, audit, *arguments))

    async def namespace(self, tenant: str, name: str) -> NamespaceRecord | None:
        """See `Registry.namespace`."""
        found = await self._redis.run(scripts.NAMESPACE, tenant, name)
        return None if found is None else records.decode_namespace(_text(found))

    async def namespaces(self, tenant: str, *, after: str, limit: int) -> list[NamespaceRecord]:
        """See `Registry.namespaces`."""
        found = await self._redis.run(scripts.NAMESPACES, tenant, after, limit)
        return [records.decode_namespace(_text(each)) for each in _items(found)]

    async def delete_namespace(self, tenant: str, name: str, *, audit: Audit) -> bool:
        """See `Registry.delete_namespace`."""
        return await self._change(scripts.DELETE_NAMESPACE, audit, tenant, name) == 1

    # ---- the audit log ----

    async def append_audit(self, audit: Audit) -> None:
        """See `Registry.append_audit`."""
        await self._change(scripts.APPEND_AUDIT, audit)

    async def audit_log(self, *, tenant: str | None, before: int, limit: int) -> list[AuditEntry]:
        """See `Registry.audit_log`."""
        whose = ("all", "") if tenant is None else ("of", tenant)
        found = _items(await self._redis.run(scripts.AUDIT_LOG, *whose, before, limit))
        return [
            AuditEntry(int(_text(number)), records.decode_audit(_text(text)))
            for number, text in zip(found[::2], found[1::2], strict=True)
        ]

    # ---- repeats ----

    async def answer(self, idempotency_key: str) -> Answer | None:
        """See `Registry.answer`."""
        found = await self._redis.run(scripts.ANSWER, idempotency_key)
        return None if found is None else records.decode_answer(_text(found))

    async def remember(self, idempotency_key: str, answer: Answer, *, tenant: str | None, for_s: int) -> None:
        """See `Registry.remember`."""
        arguments = (_whose(tenant), idempotency_key, records.encode_answer(answer), for_s, ANSWERS_MAX)
        # Written twice it is the same.
        await self._redis.run(scripts.REMEMBER, *arguments)

    async def _change(self, script: str, audit: Audit, *arguments: str | int) -> object:
        return await self._redis.run_once(script, audit.tenant, records.encode_audit(audit), *arguments)


def _whose(tenant: str | None) -> str:
    return "operators" if tenant is None else f"tenant:{tenant}"


def _key(text: object, used: object) -> Key:
    return records.decode_key(_text(text), None if used is None else int(_text(used)))


def _text(reply: object) -> str:
    """A reply's text; "" for what was never set."""
    if reply is None:
        return ""
    assert isinstance(reply, str), "replies are decoded"
    return reply


def _items(reply: object) -> list[object]:
    assert isinstance(reply, list), "the script returns an array"
    return reply
