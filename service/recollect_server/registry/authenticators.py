"""Who a credential belongs to, where there is one tenant and no key."""

from __future__ import annotations

from recollect_server.domain.identity import Caller

DEV_TENANT = "dev"


class SingleTenant:
    """Implements the `Authenticator` port for one process that serves one tenant: `--dev` and embedded.

    Bootstrap gives it only to a server that nobody else can reach (loopback, unix socket, in process).
    """

    def __init__(self, tenant: str = DEV_TENANT) -> None:
        self._caller = Caller(tenant=tenant)

    async def authenticate(self, credential: str | None) -> Caller:
        """See `Authenticator.authenticate`; any credential and none is the one tenant's."""
        del credential
        return self._caller
