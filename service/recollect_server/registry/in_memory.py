"""A registry that lasts as long as the process, as the memories of `durability=none` do."""

from __future__ import annotations

from recollect_server.domain.ports import NamespaceRecord


class InMemoryNamespaces:
    """Implements the `NamespaceRegistry` port."""

    def __init__(self) -> None:
        self._tenants: dict[str, dict[str, NamespaceRecord]] = {}

    def create(self, record: NamespaceRecord) -> bool:
        """See `NamespaceRegistry.create`."""
        records = self._tenants.setdefault(record.tenant, {})
        if record.name in records:
            return False
        records[record.name] = record
        return True

    def get(self, tenant: str, name: str) -> NamespaceRecord | None:
        """See `NamespaceRegistry.get`."""
        return self._tenants.get(tenant, {}).get(name)

    def list(self, tenant: str, *, after: str, limit: int) -> list[NamespaceRecord]:
        """See `NamespaceRegistry.list`."""
        records = self._tenants.get(tenant, {})
        return [records[name] for name in sorted(records) if name > after][:limit]

    def count(self, tenant: str) -> int:
        """See `NamespaceRegistry.count`."""
        return len(self._tenants.get(tenant, {}))

    def delete(self, tenant: str, name: str) -> bool:
        """See `NamespaceRegistry.delete`."""
        return self._tenants.get(tenant, {}).pop(name, None) is not None
