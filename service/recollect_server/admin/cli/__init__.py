"""`recollect tenants`, `keys`, `namespaces`, `audit` and `drain`: they speak to the admin API of a server."""
