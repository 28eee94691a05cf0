"""Tenants, keys and namespaces to put into a registry."""

from __future__ import annotations

from recollect_server.domain.audit import Audit
from recollect_server.domain.credentials import Key, digest_of
from recollect_server.domain.identity import Scope
from recollect_server.domain.registry import NamespaceRecord
from recollect_server.domain.spec import Dtype, IndexChoice, NamespaceSpec, ValueDtype
from recollect_server.domain.tenants import Quotas, Tenant

NOW_MS = 1_700_000_000_000
SPEC = NamespaceSpec(
    (0, 8),
    heads=4,
    key_dim=64,
    value_dim=32,
    capacity=4096,
    dtype=Dtype.BFLOAT16,
    index=IndexChoice.IVF,
    recall=0.8,
    value_dtype=ValueDtype.INT8,
)


def audit(action: str = "test", *, tenant: str = "acme", target: str = "") -> Audit:
    """What a change is noted as."""
    return Audit(NOW_MS, "operator:0011223344556677", "192.0.2.1", action, tenant, target, "because é\n")


def tenant(name: str = "acme", *, revision: int = 1, disabled: bool = False) -> Tenant:
    """A tenant with quotas of its own."""
    return Tenant(name, NOW_MS, Quotas(bytes_max=2**53, weight=3), disabled, revision)


def key(key_id: str, *, tenant: str | None = "acme", label: str = "", revoked: bool = False) -> Key:
    """A key that has everything."""
    scopes = frozenset() if tenant is None else frozenset((Scope.READ, Scope.ADMIN))
    revoked_at_ms = NOW_MS if revoked else None
    return Key(key_id, tenant, digest_of(key_id), scopes, label, NOW_MS, NOW_MS + 1, revoked_at_ms)


def namespace(name: str, *, tenant: str = "acme", uid: str = "u1") -> NamespaceRecord:
    """A namespace."""
    return NamespaceRecord(tenant, name, SPEC, NOW_MS, uid)
