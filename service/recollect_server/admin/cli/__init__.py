"""Commands of the shell, as `recollect tenants`: they speak to the admin API of a server."""
