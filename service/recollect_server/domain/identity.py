"""Who is calling. Made from a credential by an `Authenticator`, never from a message."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller.

    Attributes:
        tenant: Whose namespaces the call may see. Every look-up of a namespace goes through it.
    """

    tenant: str
