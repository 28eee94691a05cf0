"""Who a credential belongs to, where tenants have keys."""

from __future__ import annotations

import hmac

from recollect_server.application.directory import Directory
from recollect_server.domain.credentials import NO_DIGEST, digest_of, parse_key
from recollect_server.domain.errors import UnauthenticatedError
from recollect_server.domain.identity import Caller, Operator, Principal
from recollect_server.domain.ports import Clock


class KeyAuthenticator:
    """Implements the `Authenticator` port with the keys of a directory.

    Args:
        directory: Where keys and tenants are looked up.
        clock: Unix time; keys expire by it.
    """

    def __init__(self, directory: Directory, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock

    async def authenticate(self, credential: str | None) -> Principal:
        """See `Authenticator.authenticate`. Whatever is wrong with a credential, the error is the same."""
        presented = parse_key(credential)
        if presented is None:
            raise UnauthenticatedError
        key = await self._directory.key(presented.key_id)
        # Also for a key that is not there: how long the answer takes must not tell the two apart.
        expected = NO_DIGEST if key is None else key.digest
        matches = hmac.compare_digest(expected, digest_of(presented.secret))
        if key is None or not matches or not key.is_valid(int(self._clock() * 1000)):
            raise UnauthenticatedError
        if key.tenant is None:
            self._directory.touch(key.key_id)
            return Operator(key.key_id)
        tenant = await self._directory.tenant(key.tenant)
        if tenant is None or tenant.disabled:
            raise UnauthenticatedError
        self._directory.touch(key.key_id)
        return Caller(key.tenant, key.key_id, key.scopes)
