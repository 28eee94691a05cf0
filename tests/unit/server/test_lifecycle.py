"""The server without its sockets: what it does by itself while the registry comes and goes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

import recollect
from recollect_server import bootstrap, lifecycle
from recollect_server.domain.audit import Origin
from recollect_server.domain.errors import QuotaExceededError
from recollect_server.domain.eviction import Oldest
from recollect_server.domain.registry import NamespaceRecord
from recollect_server.domain.spec import Dtype, NamespaceSpec
from recollect_server.domain.telemetry import NoTelemetry
from recollect_server.domain.tenants import Quotas, Tenant
from recollect_server.lifecycle import FirstKeys
from recollect_server.settings import RegistrySettings, Settings
from tests.unit.server.shaky_registry import AUDIT, PATIENCE_S, ShakyRegistry, until

SPEC = NamespaceSpec(layers=(0,), heads=1, key_dim=4, value_dim=4, capacity=64, dtype=Dtype.FLOAT16)

OPERATOR = f"rk_{'0' * 16}_{'0' * 64}"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing rests for seconds."""
    monkeypatch.setattr(lifecycle, "RECONCILE_S", 0.02)
    monkeypatch.setattr(lifecycle, "ENSURE_S", 0.02)


@pytest.fixture
async def registry() -> ShakyRegistry:
    """Whether it is there is up to the test."""
    return ShakyRegistry()


def parts_of(registry: ShakyRegistry, first: FirstKeys) -> bootstrap.Parts:
    """A server over it."""
    settings = Settings(device="cpu", registry=RegistrySettings(poll_s=0.01))
    parts = bootstrap._parts(settings, registry, "", telemetry=NoTelemetry())
    parts.core._first = first
    return parts


async def patiently(condition: Callable[[], bool]) -> None:
    """Waits until it holds, or fails."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


async def test_what_is_deleted_elsewhere_goes_though_the_registry_blinks(
    registry: ShakyRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that blinks has the memory of a deleted namespace stay for ever, and its tenant pay."""
    parts = parts_of(registry, FirstKeys(operator_token=OPERATOR))
    await parts.core.start()
    record = NamespaceRecord("one", "n", SPEC, created_at_ms=0, uid="u")
    await registry.create_namespace(record, at_most=10, audit=AUDIT)
    parts.memories.of(record)
    compared = asyncio.Event()
    asked = parts.core.directory.namespace

    async def namespace(tenant: str, name: str) -> NamespaceRecord | None:
        compared.set()
        return await asked(tenant, name)

    monkeypatch.setattr(parts.core.directory, "namespace", namespace)
    registry.open_gate.clear()  # who looks a record up waits
    await registry.delete_namespace("one", "n", audit=AUDIT)
    await asyncio.wait_for(compared.wait(), PATIENCE_S)
    registry.go_away()
    registry.open_gate.set()
    await patiently(lambda: parts.core.directory.unavailable_reason != "")
    await asyncio.sleep(0.1)
    assert parts.memories.held()
    registry.away = None
    await patiently(lambda: not parts.memories.held())
    await parts.core.stop()


async def test_a_tenants_own_evictions_are_counted(registry: ShakyRegistry) -> None:
    """A tenant's key that evicts in a loop fills the audit log, which all share and which is for ever."""
    parts = parts_of(registry, FirstKeys(operator_token=OPERATOR))
    await parts.core.start()
    await registry.create_tenant(Tenant("one", 0, Quotas(changes_per_minute=2)), audit=AUDIT)
    record = NamespaceRecord("one", "n", SPEC, created_at_ms=0, uid="u")
    await registry.create_namespace(record, at_most=10, audit=AUDIT)
    await parts.core.directory.refresh()

    async def evict(actor: str) -> int:
        return await parts.namespaces.evict(
            "one", "n", streams=None, layers=(), selector=Oldest(1), origin=Origin(actor, "")
        )

    assert [await evict("tenant:one/key") for _ in range(2)] == [0, 0]
    logged = len(await registry.audit_log(tenant="one", before=0, limit=100))
    for _ in range(2):
        with pytest.raises(QuotaExceededError, match="evictions a minute"):
            await evict("tenant:one/key")
    assert len(await registry.audit_log(tenant="one", before=0, limit=100)) == logged
    assert await evict("operator:key") == 0
    await parts.core.stop()


async def test_a_key_that_cannot_be_written_down_is_told_of(
    registry: ShakyRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody can administer a server, and nobody knows why: the first key was lost in silence."""
    registry.go_away()
    parts = parts_of(registry, FirstKeys(operator_file=tmp_path / "no such folder" / "operator.key"))
    with caplog.at_level(logging.ERROR):
        await parts.core.start()
        registry.away = None
        await until(lambda: any("nobody can administer" in record.getMessage() for record in caplog.records))
    assert "no such folder" in caplog.text
    assert not await registry.keys(None, after="", limit=1)
    await parts.core.stop()


def test_who_shares_with_nobody_is_held_up_by_no_quota() -> None:
    """A process's own memory waits for a minute's worth of changes, which only protects other tenants."""
    with recollect.connect("embedded://", retries=0) as client:
        for number in range(Quotas().changes_per_minute + 50):
            name = f"n{number}"
            client.create_namespace(name, layers=[0], heads=1, key_dim=4, value_dim=4, capacity=8)
            client.delete_namespace(name)
    unbounded = Quotas.unbounded()
    unbounded.validate()
    assert unbounded.weight == Quotas().weight
