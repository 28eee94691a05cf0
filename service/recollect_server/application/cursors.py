"""Page tokens: where a list goes on. Each belongs to one tenant and one list, and means nothing elsewhere."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from recollect_server.domain.errors import InvalidArgumentError

MARK_BYTES = 12

TOKEN_LENGTH_MAX = 2048
"""What is longer is not looked at; names that tokens are made of are far shorter."""


def token(position: str, owner: str) -> str:
    """A page token, opaque to callers; "" for the end.

    Args:
        position: Of the last item of the page.
        owner: Of the list: the tenant, and what is listed.
    """
    if not position:
        return ""
    return base64.urlsafe_b64encode(_mark(position, owner) + position.encode()).decode()


def position(page_token: str, owner: str) -> str:
    """What `token` was made of; "" for the first page.

    Not a secret: it tells a mistake, as a token of another list. Where a list begins gives nobody more than
    the list itself would.

    Raises:
        InvalidArgumentError: Not a token of this list.
    """
    if not page_token:
        return ""
    if len(page_token) > TOKEN_LENGTH_MAX:
        raise _unknown()
    try:
        raw = base64.b64decode(page_token.encode(), altchars=b"-_", validate=True)
        found = raw[MARK_BYTES:].decode()
    except (binascii.Error, UnicodeError):
        raise _unknown() from None
    if not found or not hmac.compare_digest(raw[:MARK_BYTES], _mark(found, owner)):
        raise _unknown()
    return found


def _mark(position_: str, owner: str) -> bytes:
    return hashlib.sha256(f"{len(owner)}:{owner}{position_}".encode()).digest()[:MARK_BYTES]


def _unknown() -> InvalidArgumentError:
    return InvalidArgumentError(
        "page_token", "is not one of this list's; take next_page_token of the page before"
    )
