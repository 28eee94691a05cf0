"""API keys: `rk_<key id>_<secret>`. The secret is shown once; only its digest is kept."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, field, replace

from recollect_server.domain.identity import Scope

KEY_PATTERN = re.compile(r"rk_([0-9a-f]{16})_([0-9a-f]{64})")
KEY_ID_BYTES, SECRET_BYTES = 8, 32
TOKEN_LENGTH_MAX = 256
"""What is longer is not looked at."""

NO_DIGEST = bytes(32)
"""Of no secret: what an unknown key id is compared with, so that it takes as long as a known one."""


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of an API key. Operator keys have no tenant and no scopes.

    Attributes:
        key_id: Public; names the key in lists, logs and the audit log.
        tenant: Whose it is; None for an operator's.
        digest: SHA-256 of the secret. A secret is 256 random bits, so nothing slower is needed.
        scopes: What it allows.
        label: For people.
        created_at_ms: Unix time, as all times here.
        expires_at_ms: From when on it is refused, or None.
        revoked_at_ms: Since when it is refused, or None.
        last_used_at_ms: Some seconds exact, or None. Not set in a key that is written to a registry.
        is_rotated: Whether another one took its place, so that `expires_at_ms` is the end of an overlap.
        meant_until_ms: What `expires_at_ms` was before the first rotation; None if it is not rotated.
    """

    key_id: str
    tenant: str | None
    digest: bytes = field(repr=False)
    scopes: frozenset[Scope]
    label: str
    created_at_ms: int
    expires_at_ms: int | None = None
    revoked_at_ms: int | None = None
    last_used_at_ms: int | None = None
    is_rotated: bool = False
    meant_until_ms: int | None = None

    @property
    def lifetime_ms(self) -> int | None:
        """How long it was to live when it was made, whatever a rotation made of that; None: for ever."""
        until_ms = self.meant_until_ms if self.is_rotated else self.expires_at_ms
        return None if until_ms is None else until_ms - self.created_at_ms

    def ending(self, at_ms: int) -> Key:
        """The key as it is when another one takes its place, and its overlap ends then or before."""
        return replace(
            self,
            expires_at_ms=at_ms if self.expires_at_ms is None else min(at_ms, self.expires_at_ms),
            last_used_at_ms=None,
            is_rotated=True,
            meant_until_ms=self.meant_until_ms if self.is_rotated else self.expires_at_ms,
        )

    def is_valid(self, now_ms: int) -> bool:
        """Whether it is neither expired nor revoked."""
        expired = self.expires_at_ms is not None and now_ms >= self.expires_at_ms
        return not expired and self.revoked_at_ms is None


@dataclass(frozen=True, slots=True)
class Presented:
    """A credential as somebody showed it: well-formed, nothing more."""

    key_id: str
    secret: str = field(repr=False)


def parse_key(credential: str | None) -> Presented | None:
    """Reads `rk_<key id>_<secret>`; None if it is not one."""
    if credential is None or len(credential) > TOKEN_LENGTH_MAX:
        return None
    match = KEY_PATTERN.fullmatch(credential)
    return Presented(match[1], match[2]) if match else None


def new_token() -> tuple[Presented, str]:
    """A fresh key: its parts, and the token that its holder is to show."""
    presented = Presented(secrets.token_hex(KEY_ID_BYTES), secrets.token_hex(SECRET_BYTES))
    return presented, f"rk_{presented.key_id}_{presented.secret}"


def digest_of(secret: str) -> bytes:
    """What is kept of a secret."""
    return hashlib.sha256(secret.encode()).digest()
