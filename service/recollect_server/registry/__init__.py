"""What all servers of an installation agree on: tenants, keys, namespaces, the audit log."""
