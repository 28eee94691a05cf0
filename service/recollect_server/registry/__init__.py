"""Which namespaces and tenants there are."""
