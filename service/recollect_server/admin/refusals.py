"""What the HTTP side itself refuses, where the domain has no word for it."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import HTTPException


class RefusedError(HTTPException):
    """A request that is answered with a problem of its own.

    An HTTPException, because FastAPI passes nothing else on from where it reads a body.

    Args:
        status: HTTP status.
        reason: Machine-readable and stable.
        message: For people.
        argument: The one to blame, or "".
    """

    def __init__(
        self,
        status: int,
        reason: str,
        *,
        message: str,
        argument: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.reason = reason
        self.message = message
        self.argument = argument
