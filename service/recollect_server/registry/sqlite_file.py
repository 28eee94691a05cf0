"""The SQLite file of a registry: who may open it, its schema, and the one thread that works on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from recollect_server.domain.errors import RegistryUnavailableError

log = logging.getLogger(__name__)
T = TypeVar("T")

SCHEMA = 1
BUSY_TIMEOUT_S = 1.0
"""How long a server waits for the one before it to let go of the file."""

LOG_IN_MEMORY_MAX = 10_000
"""Entries of the audit log in memory, a few megabytes. A file's has no bound."""

TABLES = (
    """CREATE TABLE registry (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        schema INTEGER NOT NULL,
        incarnation TEXT NOT NULL,
        changes INTEGER NOT NULL
    )""",
    "CREATE TABLE tenants (name TEXT PRIMARY KEY, revision INTEGER NOT NULL, record TEXT NOT NULL)",
    # An operator's key has no tenant, and a foreign key that is NULL refers to nothing.
    """CREATE TABLE keys (
        key_id TEXT PRIMARY KEY,
        tenant TEXT REFERENCES tenants (name) ON DELETE CASCADE,
        record TEXT NOT NULL
    )""",
    "CREATE INDEX keys_by_tenant ON keys (tenant, key_id)",
    """CREATE TABLE key_uses (
        key_id TEXT PRIMARY KEY REFERENCES keys (key_id) ON DELETE CASCADE,
        last_used_at_ms INTEGER NOT NULL
    )""",
    """CREATE TABLE namespaces (
        tenant TEXT NOT NULL REFERENCES tenants (name) ON DELETE CASCADE,
        name TEXT NOT NULL,
        record TEXT NOT NULL,
        PRIMARY KEY (tenant, name)
    )""",
    # AUTOINCREMENT: a number never comes back.
    """CREATE TABLE audit (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        tenant TEXT NOT NULL,
        record TEXT NOT NULL
    )""",
    "CREATE INDEX audit_by_tenant ON audit (tenant, number)",
    """CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
        BEGIN SELECT RAISE(ABORT, 'the audit log is only appended to'); END""",
    """CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
        BEGIN SELECT RAISE(ABORT, 'the audit log is only appended to'); END""",
    """CREATE TABLE answers (
        idempotency_key TEXT PRIMARY KEY,
        until_ms INTEGER NOT NULL,
        record TEXT NOT NULL
    )""",
    "CREATE INDEX answers_by_end ON answers (until_ms)",
)
WHOSE_ANSWERS = (
    # Apart, for files from before answers were bounded for each tenant. Those in it go within a day.
    "ALTER TABLE answers ADD COLUMN tenant TEXT",
    "CREATE INDEX answers_by_tenant ON answers (tenant, until_ms)",
)
IN_MEMORY = (
    "DROP TRIGGER audit_is_not_deleted",
    f"""CREATE TRIGGER audit_is_bounded AFTER INSERT ON audit
        BEGIN DELETE FROM audit WHERE number <= NEW.number - {LOG_IN_MEMORY_MAX}; END""",
)


class SqliteFile:
    """One connection to the file, held by one server alone.

    A file's work is done on a thread of its own, since it waits for the disk. What is in memory is done
    where it is asked for.

    Args:
        path: Of the file; None: in memory, gone when it is closed.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    async def open(self) -> None:
        """Opens or creates the file. Once open, no other process can.

        Raises:
            ValueError: It cannot be opened, another server has it, it is no registry or a newer one.
        """
        if self._connection is not None:
            return
        if self._path is None:
            self._connection = _connected(None)
            return
        executor = ThreadPoolExecutor(1, thread_name_prefix="recollect-registry")
        try:
            loop = asyncio.get_running_loop()
            self._connection = await loop.run_in_executor(executor, _opened, self._path)
        except BaseException:
            executor.shutdown(wait=False)
            raise
        self._executor = executor

    async def close(self) -> None:
        """Finishes what is under way and lets go of the file."""
        connection, self._connection = self._connection, None
        executor, self._executor = self._executor, None
        if connection is None:
            return
        if executor is None:
            connection.close()
            return
        try:
            await asyncio.get_running_loop().run_in_executor(executor, connection.close)
        finally:
            executor.shutdown(wait=False)

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `work` and returns what it returns.

        Raises:
            RegistryUnavailableError: The registry is not open, or the file cannot be read.
        """
        return await self._run(work)

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `work` in one transaction, which is on disk when this returns.

        Raises:
            RegistryUnavailableError: The registry is not open, or the file cannot be written.
        """
        return await self._run(lambda connection: _in_transaction(connection, work))

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connection
        if connection is None:
            raise RegistryUnavailableError("the registry is not open")
        if self._executor is None:
            return self._work(connection, work)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, self._work, connection, work)

    def _work(self, connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            with self._lock:  # what is in memory may be asked for by several threads
                return work(connection)
        except sqlite3.Error as error:
            # The caller is not told where the file is.
            log.error("the registry in %s failed: %s", self._path or "memory", error)
            raise RegistryUnavailableError("the registry cannot be read or written now") from error


def _in_transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = work(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return result


def _opened(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # SQLite would make it readable by others, and its other files have the mode of this one. A file that
        # is there is not opened here: closing it again would end a lock that this process has on it.
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        return _connected(path)
    except OSError as error:
        raise ValueError(f"the registry {path} cannot be opened: {error.strerror}") from error
    except sqlite3.Error as error:
        code = error.sqlite_errorcode & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            message = (
                f"the registry {path} is in use by another server; give each server a data directory of its "
                "own, or let them share a registry in Redis"
            )
        elif code == sqlite3.SQLITE_NOTADB:
            message = f"{path} is no registry: it is no SQLite file"
        else:
            message = f"the registry {path} cannot be opened: {error}"
        raise ValueError(message) from error


def _connected(path: Path | None) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path or ":memory:", timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        if path is not None:
            # Taken with the first transaction, and kept until the connection ends.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        _make_or_check(connection, path)
        connection.execute("COMMIT")
        if path is not None:
            # Only now: a file that is not ours stays as it was.
            path.chmod(0o600)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def _make_or_check(connection: sqlite3.Connection, path: Path | None) -> None:
    tables = {str(name) for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    if not tables:
        for statement in (*TABLES, *WHOSE_ANSWERS, *(IN_MEMORY if path is None else ())):
            connection.execute(statement)
        connection.execute("INSERT INTO registry VALUES (1, ?, ?, 0)", (SCHEMA, secrets.token_hex(8)))
        return
    if "registry" not in tables:
        raise ValueError(f"{path} is no registry: it is the SQLite file of something else")
    row = connection.execute("SELECT schema FROM registry").fetchone()
    schema = int(row[0]) if row else 0
    if schema > SCHEMA:
        raise ValueError(
            f"the registry {path} was written by a newer version of the server: its schema is {schema}, "
            f"this version knows {SCHEMA}"
        )
    if schema < SCHEMA:
        raise ValueError(f"the registry {path} has schema {schema}, which no version of the server wrote")
    columns = {str(column[1]) for column in connection.execute("PRAGMA table_info(answers)")}
    if "tenant" not in columns:
        for statement in WHOSE_ANSWERS:
            connection.execute(statement)
