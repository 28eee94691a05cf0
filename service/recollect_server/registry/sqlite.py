"""The registry in a SQLite file, of one server."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

from recollect_server.domain.audit import Audit, AuditEntry
from recollect_server.domain.credentials import Key
from recollect_server.domain.ports import Clock
from recollect_server.domain.registry import ANSWERS_MAX, Answer, Creation, NamespaceRecord
from recollect_server.domain.tenants import Tenant
from recollect_server.registry import records
from recollect_server.registry.sqlite_file import SqliteFile

ANSWERS_OF_ALL_MAX = 10_000
"""Beyond it the answers that would be forgotten first are forgotten now, whosever they are."""

KEYS = "SELECT record, last_used_at_ms FROM keys LEFT JOIN key_uses USING (key_id)"


class SqliteRegistry:
    """Implements the `Registry` port.

    Args:
        path: Of the file; None: in memory, gone when it is closed.
        clock: Says when answers are forgotten.
    """

    def __init__(self, path: Path | None, *, clock: Clock) -> None:
        self._file = SqliteFile(path)
        self._clock = clock

    async def open(self) -> None:
        """See `Registry.open`. Raises ValueError, which names the path, also if another server has it."""
        await self._file.open()

    async def close(self) -> None:
        """See `Registry.close`."""
        await self._file.close()

    async def version(self) -> str:
        """See `Registry.version`."""
        row = await self._file.read(lambda db: _one(db, "SELECT incarnation, changes FROM registry", ()))
        assert row is not None, "SqliteFile made it"
        return f"{row[0]}-{row[1]}"

    # ---- tenants ----

    async def create_tenant(self, tenant: Tenant, *, audit: Audit) -> Creation:
        """See `Registry.create_tenant`."""

        def work(db: sqlite3.Connection) -> Creation:
            if _has_tenant(db, tenant.name):
                return Creation.EXISTS
            values = (tenant.name, tenant.revision, records.encode_tenant(tenant))
            db.execute("INSERT INTO tenants (name, revision, record) VALUES (?, ?, ?)", values)
            _changed(db, audit)
            return Creation.CREATED

        return await self._file.write(work)

    async def tenant(self, name: str) -> Tenant | None:
        """See `Registry.tenant`."""
        found = await self._texts("SELECT record FROM tenants WHERE name = ?", (name,))
        return records.decode_tenant(found[0]) if found else None

    async def tenants(self, *, after: str, limit: int) -> list[Tenant]:
        """See `Registry.tenants`."""
        page = "SELECT record FROM tenants WHERE name > ? ORDER BY name LIMIT ?"
        return [records.decode_tenant(text) for text in await self._texts(page, (after, limit))]

    async def replace_tenant(self, tenant: Tenant, *, audit: Audit) -> bool:
        """See `Registry.replace_tenant`."""

        def work(db: sqlite3.Connection) -> bool:
            statement = "UPDATE tenants SET revision = ?, record = ? WHERE name = ? AND revision = ?"
            values = (tenant.revision, records.encode_tenant(tenant), tenant.name, tenant.revision - 1)
            return _changed(db, audit) if db.execute(statement, values).rowcount else False

        return await self._file.write(work)

    async def delete_tenant(self, name: str, *, audit: Audit) -> bool:
        """See `Registry.delete_tenant`."""

        def work(db: sqlite3.Connection) -> bool:
            # Keys, their uses, and namespaces go with it.
            deleted = db.execute("DELETE FROM tenants WHERE name = ?", (name,)).rowcount
            return _changed(db, audit) if deleted else False

        return await self._file.write(work)

    # ---- keys ----

    async def create_key(self, key: Key, *, audit: Audit) -> Creation:
        """See `Registry.create_key`."""

        def work(db: sqlite3.Connection) -> Creation:
            if key.tenant is not None and not _has_tenant(db, key.tenant):
                return Creation.NO_TENANT
            if _one(db, "SELECT 1 FROM keys WHERE key_id = ?", (key.key_id,)):
                return Creation.EXISTS
            _insert_key(db, key)
            _changed(db, audit)
            return Creation.CREATED

        return await self._file.write(work)

    async def key(self, key_id: str) -> Key | None:
        """See `Registry.key`."""
        found = await self._keys(f"{KEYS} WHERE key_id = ?", (key_id,))
        return found[0] if found else None

    async def keys(self, tenant: str | None, *, after: str, limit: int) -> list[Key]:
        """See `Registry.keys`."""
        page = f"{KEYS} WHERE tenant IS ? AND key_id > ? ORDER BY key_id LIMIT ?"
        return await self._keys(page, (tenant, after, limit))

    async def replace_key(self, key: Key, *, audit: Audit) -> bool:
        """See `Registry.replace_key`; a key of another tenant is none of its id."""
        return await self._file.write(lambda db: _changed(db, audit) if _replace_key(db, key) else False)

    async def rotate_key(self, old: Key, new: Key, *, audit: Audit) -> bool:
        """See `Registry.rotate_key`; False, too, if the new one's id is taken."""
        if old.tenant != new.tenant:
            raise ValueError("the old and the new key belong to different tenants")

        def work(db: sqlite3.Connection) -> bool:
            taken = _one(db, "SELECT 1 FROM keys WHERE key_id = ?", (new.key_id,))
            if taken or not _replace_key(db, old):
                return False
            _insert_key(db, new)
            return _changed(db, audit)

        return await self._file.write(work)

    async def touch_keys(self, last_used_at_ms: Mapping[str, int]) -> None:
        """See `Registry.touch_keys`; the latest use stays."""
        uses = [(at_ms, key_id) for key_id, at_ms in last_used_at_ms.items()]
        if not uses:
            return
        statement = """
            INSERT INTO key_uses (key_id, last_used_at_ms) SELECT key_id, ? FROM keys WHERE key_id = ?
            ON CONFLICT DO UPDATE SET last_used_at_ms = MAX(last_used_at_ms, excluded.last_used_at_ms)
            """
        await self._file.write(lambda db: db.executemany(statement, uses))

    # ---- namespaces ----

    async def create_namespace(self, record: NamespaceRecord, *, at_most: int, audit: Audit) -> Creation:
        """See `Registry.create_namespace`."""

        def work(db: sqlite3.Connection) -> Creation:
            if not _has_tenant(db, record.tenant):
                return Creation.NO_TENANT
            names = (record.tenant, record.name)
            if _one(db, "SELECT 1 FROM namespaces WHERE tenant = ? AND name = ?", names):
                return Creation.EXISTS
            count = _one(db, "SELECT COUNT(*) FROM namespaces WHERE tenant = ?", (record.tenant,))
            if count is not None and int(str(count[0])) >= at_most:
                return Creation.FULL
            values = (*names, records.encode_namespace(record))
            db.execute("INSERT INTO namespaces (tenant, name, record) VALUES (?, ?, ?)", values)
            _changed(db, audit)
            return Creation.CREATED

        return await self._file.write(work)

    async def namespace(self, tenant: str, name: str) -> NamespaceRecord | None:
        """See `Registry.namespace`."""
        query = "SELECT record FROM namespaces WHERE tenant = ? AND name = ?"
        found = await self._texts(query, (tenant, name))
        return records.decode_namespace(found[0]) if found else None

    async def namespaces(self, tenant: str, *, after: str, limit: int) -> list[NamespaceRecord]:
        """See `Registry.namespaces`."""
        page = "SELECT record FROM namespaces WHERE tenant = ? AND name > ? ORDER BY name LIMIT ?"
        return [records.decode_namespace(text) for text in await self._texts(page, (tenant, after, limit))]

    async def delete_namespace(self, tenant: str, name: str, *, audit: Audit) -> bool:
        """See `Registry.delete_namespace`."""

        def work(db: sqlite3.Connection) -> bool:
            statement = "DELETE FROM namespaces WHERE tenant = ? AND name = ?"
            deleted = db.execute(statement, (tenant, name)).rowcount
            return _changed(db, audit) if deleted else False

        return await self._file.write(work)

    # ---- the audit log ----

    async def append_audit(self, audit: Audit) -> None:
        """See `Registry.append_audit`."""
        await self._file.write(lambda db: _append(db, audit))

    async def audit_log(self, *, tenant: str | None, before: int, limit: int) -> list[AuditEntry]:
        """See `Registry.audit_log`."""
        whose = "" if tenant is None else "tenant = :tenant AND"
        page = f"""
            SELECT number, record FROM audit WHERE {whose} (:before = 0 OR number < :before)
            ORDER BY number DESC LIMIT :limit
            """
        values = {"tenant": tenant, "before": before, "limit": limit}
        rows = await self._file.read(lambda db: db.execute(page, values).fetchall())
        return [AuditEntry(int(number), records.decode_audit(str(text))) for number, text in rows]

    # ---- repeats ----

    async def answer(self, idempotency_key: str) -> Answer | None:
        """See `Registry.answer`."""
        query = "SELECT record FROM answers WHERE idempotency_key = ? AND until_ms > ?"
        found = await self._texts(query, (idempotency_key, self._now_ms()))
        return records.decode_answer(found[0]) if found else None

    async def remember(self, idempotency_key: str, answer: Answer, *, tenant: str | None, for_s: int) -> None:
        """See `Registry.remember`."""
        now_ms = self._now_ms()
        values = (idempotency_key, tenant, now_ms + 1000 * for_s, records.encode_answer(answer))

        def work(db: sqlite3.Connection) -> None:
            columns = "idempotency_key, tenant, until_ms, record"
            db.execute(f"INSERT OR REPLACE INTO answers ({columns}) VALUES (?, ?, ?, ?)", values)
            db.execute("DELETE FROM answers WHERE until_ms <= ?", (now_ms,))
            order = "ORDER BY until_ms DESC, rowid DESC LIMIT -1 OFFSET ?"
            beyond = f"SELECT rowid FROM answers WHERE tenant IS ? {order}"
            db.execute(f"DELETE FROM answers WHERE rowid IN ({beyond})", (tenant, ANSWERS_MAX))
            beyond = f"SELECT rowid FROM answers {order}"
            db.execute(f"DELETE FROM answers WHERE rowid IN ({beyond})", (ANSWERS_OF_ALL_MAX,))

        await self._file.write(work)

    # ---- reading ----

    async def _texts(self, query: str, values: tuple[object, ...]) -> list[str]:
        rows = await self._file.read(lambda db: db.execute(query, values).fetchall())
        return [str(row[0]) for row in rows]

    async def _keys(self, query: str, values: tuple[object, ...]) -> list[Key]:
        rows = await self._file.read(lambda db: db.execute(query, values).fetchall())
        return [records.decode_key(str(text), used if used is None else int(used)) for text, used in rows]

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _one(db: sqlite3.Connection, query: str, values: tuple[object, ...]) -> tuple[object, ...] | None:
    row: tuple[object, ...] | None = db.execute(query, values).fetchone()
    return row


def _has_tenant(db: sqlite3.Connection, name: str) -> bool:
    return _one(db, "SELECT 1 FROM tenants WHERE name = ?", (name,)) is not None


def _insert_key(db: sqlite3.Connection, key: Key) -> None:
    values = (key.key_id, key.tenant, records.encode_key(key))
    db.execute("INSERT INTO keys (key_id, tenant, record) VALUES (?, ?, ?)", values)


def _replace_key(db: sqlite3.Connection, key: Key) -> bool:
    found = _one(db, "SELECT record FROM keys WHERE key_id = ? AND tenant IS ?", (key.key_id, key.tenant))
    if found is None or not records.may_become(records.decode_key(str(found[0]), None), key):
        return False
    db.execute("UPDATE keys SET record = ? WHERE key_id = ?", (records.encode_key(key), key.key_id))
    return True


def _append(db: sqlite3.Connection, audit: Audit) -> None:
    values = (audit.tenant, records.encode_audit(audit))
    db.execute("INSERT INTO audit (tenant, record) VALUES (?, ?)", values)


def _changed(db: sqlite3.Connection, audit: Audit) -> bool:
    """Writes what belongs to every change of a tenant, key or namespace. True, to be returned."""
    db.execute("UPDATE registry SET changes = changes + 1")
    _append(db, audit)
    return True
