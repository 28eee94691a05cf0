"""API keys: their form, and what is kept of them."""

from __future__ import annotations

import pytest

from recollect_server.domain.credentials import (
    NO_DIGEST,
    TOKEN_LENGTH_MAX,
    Key,
    digest_of,
    new_token,
    parse_key,
)

KEY_ID, SECRET = "0123456789abcdef", "0123456789abcdef" * 4
TOKEN = f"rk_{KEY_ID}_{SECRET}"


def key(*, expires_at_ms: int | None = None, revoked_at_ms: int | None = None) -> Key:
    return Key(
        KEY_ID,
        "one",
        digest_of(SECRET),
        frozenset(),
        label="",
        created_at_ms=0,
        expires_at_ms=expires_at_ms,
        revoked_at_ms=revoked_at_ms,
    )


def test_a_new_token_is_its_own_and_can_be_read() -> None:
    """A key that was issued would not be taken, or be somebody else's as well."""
    tokens = {new_token()[1] for _ in range(100)}
    assert len(tokens) == 100
    presented, token = new_token()
    assert parse_key(token) == presented
    assert len(token) <= TOKEN_LENGTH_MAX


@pytest.mark.parametrize(
    "credential",
    [
        None,
        "",
        "rk_",
        f"rk_{KEY_ID}",
        f"rk_{KEY_ID}_",
        TOKEN[:-1],
        TOKEN + "0",
        TOKEN + "\n",
        " " + TOKEN,
        TOKEN.upper(),
        TOKEN.replace("rk_", "sk_"),
        TOKEN.replace("0", "\u0660"),  # a digit, elsewhere
        "Bearer " + TOKEN,
        TOKEN * 1000,
    ],
)
def test_what_is_no_key_is_not_read_as_one(credential: str | None) -> None:
    """Text of any form or size would be looked up, or written somewhere."""
    assert parse_key(credential) is None


def test_an_unknown_key_is_compared_with_as_much_as_a_known_one() -> None:
    """The comparison ends early for key ids that do not exist, and so tells which do."""
    assert digest_of(SECRET) != NO_DIGEST
    assert len(digest_of(SECRET)) == len(NO_DIGEST)


def test_validity_ends_with_expiry_and_revocation() -> None:
    """A key would live on after its end."""
    assert key().is_valid(10**15)
    assert key(expires_at_ms=1000).is_valid(999)
    assert not key(expires_at_ms=1000).is_valid(1000)
    assert not key(revoked_at_ms=5000).is_valid(1)


def test_secrets_are_not_shown() -> None:
    """A log line or a traceback with a key in it would give the key away."""
    presented = parse_key(TOKEN)
    assert presented is not None
    assert SECRET not in repr(presented)
    assert repr(digest_of(SECRET)) not in repr(key())
