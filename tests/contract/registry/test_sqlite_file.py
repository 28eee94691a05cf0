"""The SQLite file: who may read it, who may open it, what is refused."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from recollect_server.domain.registry import Answer
from recollect_server.registry import sqlite as sqlite_registry
from recollect_server.registry.sqlite import SqliteRegistry
from recollect_server.registry.sqlite_file import LOG_IN_MEMORY_MAX
from tests.contract.registry.conftest import HandClock
from tests.contract.registry.samples import audit, tenant

OTHER_PROCESS = """
import asyncio, sys, time
from pathlib import Path
from recollect_server.registry.sqlite import SqliteRegistry
try:
    asyncio.run(SqliteRegistry(Path(sys.argv[1]), clock=time.time).open())
except ValueError as error:
    sys.exit(f"ValueError: {error}")
"""


def at(path: Path) -> SqliteRegistry:
    """A registry in this file."""
    return SqliteRegistry(path, clock=HandClock())


async def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    """Digests of keys are readable by other users of the machine."""
    path = tmp_path / "data" / "registry.db"
    registry = at(path)
    await registry.open()
    await registry.create_tenant(tenant(), audit=audit())
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}, modes
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    await registry.close()


async def test_a_second_server_is_refused(tmp_path: Path) -> None:
    """Two servers write to one data directory, each with a cache that the other does not know of."""
    path = tmp_path / "registry.db"
    first = at(path)
    await first.open()
    with pytest.raises(ValueError, match="in use by another server") as refused:
        await at(path).open()
    assert str(path) in str(refused.value)
    other = subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert other.returncode == 1
    assert f"ValueError: the registry {path} is in use by another server" in other.stderr
    await first.create_tenant(tenant(), audit=audit())
    await first.close()
    second = at(path)
    await second.open()
    assert await second.tenant("acme") == tenant()
    await second.close()


async def test_a_process_that_was_killed_leaves_no_lock_and_loses_nothing(tmp_path: Path) -> None:
    """After a crash the server does not start, or what it acknowledged is gone."""
    path = tmp_path / "registry.db"
    script = """
import asyncio, os, signal, sys, time
from pathlib import Path
from recollect_server.registry.sqlite import SqliteRegistry
from tests.contract.registry.samples import audit, tenant
async def main():
    registry = SqliteRegistry(Path(sys.argv[1]), clock=time.time)
    await registry.open()
    await registry.create_tenant(tenant(), audit=audit())
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    command = [sys.executable, "-c", script, str(path)]
    killed = subprocess.run(command, cwd=Path(__file__).parents[3], timeout=60, check=False)
    assert killed.returncode == -9
    registry = at(path)
    await registry.open()
    assert await registry.tenant("acme") == tenant()
    await registry.close()


async def test_what_is_no_registry_is_refused_and_left_alone(tmp_path: Path) -> None:
    """A file of something else is overwritten, or the error does not say which file."""
    text = tmp_path / "text"
    text.write_text("not a database, but long enough to be taken for one" * 50)
    text.chmod(0o644)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE music (title TEXT)")
    connection.close()
    for path in (text, other):
        before = path.read_bytes(), path.stat().st_mode
        with pytest.raises(ValueError, match="is no registry") as refused:
            await at(path).open()
        assert str(path) in str(refused.value)
        assert (path.read_bytes(), path.stat().st_mode) == before


async def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """An operator with a wrong data directory is not told which."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "registry.db"):
        with pytest.raises(ValueError, match="cannot be opened") as refused:
            await at(path).open()
        assert str(path) in str(refused.value)


async def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    """An old server writes into a file that it does not understand."""
    path = tmp_path / "registry.db"
    registry = at(path)
    await registry.open()
    await registry.close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE registry SET schema = 2")
    connection.close()
    with pytest.raises(ValueError, match="newer version of the server: its schema is 2"):
        await at(path).open()


async def test_the_log_in_memory_is_bounded() -> None:
    """A program that makes and deletes namespaces in its own process for a week fills its memory."""
    registry = SqliteRegistry(None, clock=HandClock())
    await registry.open()
    for number in range(LOG_IN_MEMORY_MAX + 25):
        await registry.append_audit(audit(str(number), tenant=("acme", "other")[number % 2]))
    kept = await registry.audit_log(tenant=None, before=0, limit=2 * LOG_IN_MEMORY_MAX)
    assert [entry.audit.action for entry in (kept[0], kept[-1])] == [str(LOG_IN_MEMORY_MAX + 24), "25"]
    assert len(kept) == LOG_IN_MEMORY_MAX
    await registry.close()


async def test_the_audit_log_can_only_be_appended_to(tmp_path: Path) -> None:
    """A statement that changes or deletes what stands in the log is carried out."""
    path = tmp_path / "registry.db"
    registry = at(path)
    await registry.open()
    await registry.append_audit(audit())
    await registry.close()
    connection = sqlite3.connect(path)
    for statement in ("DELETE FROM audit", "UPDATE audit SET record = ''"):
        with pytest.raises(sqlite3.IntegrityError, match="only appended to"):
            connection.execute(statement)
    connection.close()


async def test_a_file_that_was_replaced_has_another_version(tmp_path: Path) -> None:
    """A server with a cache takes a new registry for the one that it knows."""
    versions = []
    for name in ("a", "b"):
        registry = at(tmp_path / name)
        await registry.open()
        versions.append(await registry.version())
        await registry.close()
    assert versions[0] != versions[1]


async def test_answers_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Idempotency keys fill the disk: those that ended stay, or there is no bound on those of all."""
    monkeypatch.setattr(sqlite_registry, "ANSWERS_OF_ALL_MAX", 3)
    path, clock = tmp_path / "registry.db", HandClock()
    registry = SqliteRegistry(path, clock=clock)
    await registry.open()
    for number in range(5):
        whose = ("acme", "other", None)[number % 3]
        await registry.remember(f"r{number}", Answer("f", 201, ""), tenant=whose, for_s=10 + number)
    known = [await registry.answer(f"r{number}") is not None for number in range(5)]
    assert known == [False, False, True, True, True]
    clock.now_s += 13
    await registry.remember("new", Answer("f", 201, ""), tenant="acme", for_s=10)
    await registry.close()
    connection = sqlite3.connect(path)
    left = {name for (name,) in connection.execute("SELECT idempotency_key FROM answers")}
    connection.close()
    assert left == {"r4", "new"}


async def test_a_file_from_before_answers_had_tenants(tmp_path: Path) -> None:
    """After an upgrade a server does not start, remembers no answer, or forgets those that it had."""
    path = tmp_path / "registry.db"
    registry = at(path)
    await registry.open()
    await registry.remember("before", Answer("f", 201, "x"), tenant=None, for_s=3600)
    await registry.close()
    connection = sqlite3.connect(path)
    connection.execute("DROP INDEX answers_by_tenant")
    connection.execute("ALTER TABLE answers DROP COLUMN tenant")
    connection.close()
    for _ in range(2):
        await registry.open()
        await registry.remember("after", Answer("f", 201, "y"), tenant="acme", for_s=3600)
        assert await registry.answer("before") == Answer("f", 201, "x")
        assert await registry.answer("after") == Answer("f", 201, "y")
        await registry.close()
