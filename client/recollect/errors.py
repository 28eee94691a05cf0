"""Everything that a call can raise, as one tree: catch `RecollectError`, or a leaf.

The same classes come from every transport, and from the checks that the client makes before it sends.
"""

from __future__ import annotations

from typing import ClassVar

from recollect.v1 import memory_pb2 as pb

__all__ = [
    "AlreadyExistsError",
    "ClosedError",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "InternalError",
    "InvalidArgumentError",
    "MissingExtraError",
    "NotFoundError",
    "PermissionDeniedError",
    "RecollectError",
    "ResourceExhaustedError",
    "StaleEntryError",
    "UnauthenticatedError",
    "UnavailableError",
    "error_from_status",
]


class RecollectError(Exception):
    """Base of all errors of this package.

    Attributes:
        message: What happened, in words.
        reason: Machine-readable cause, for example "STREAM_NOT_FOUND".
        argument: The argument to blame, or "".
        retry_after_s: When trying again may help, in seconds; None where nobody said.
        error_id: Under what the server logged the error, or "".
    """

    default_reason: ClassVar[str] = "ERROR"

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        argument: str = "",
        retry_after_s: float | None = None,
        error_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.argument = argument
        self.retry_after_s = retry_after_s
        self.error_id = error_id

    def __str__(self) -> str:
        facts: list[str] = []
        if self.reason != self.default_reason:
            facts.append(f"reason {self.reason}")
        if self.argument and self.argument not in self.message:
            facts.append(f"argument {self.argument}")
        if self.retry_after_s is not None:
            facts.append(f"retry after {self.retry_after_s:g} s")
        if self.error_id:
            facts.append(f"error id {self.error_id}")
        return f"{self.message} ({', '.join(facts)})" if facts else self.message


class InvalidArgumentError(RecollectError):
    """An argument is wrong; `argument` names it. The same call will never succeed."""

    default_reason = "INVALID_ARGUMENT"


class NotFoundError(RecollectError):
    """No such namespace, layer or stream; `reason` says which."""

    default_reason = "NOT_FOUND"


class AlreadyExistsError(RecollectError):
    """The namespace exists, with another spec or without exist_ok."""

    default_reason = "ALREADY_EXISTS"


class FailedPreconditionError(RecollectError):
    """The memory is not in the state that the call needs."""

    default_reason = "FAILED_PRECONDITION"


class StaleEntryError(FailedPreconditionError):
    """An entry that the forward call used has been evicted since."""

    default_reason = "STALE_ENTRY"


class ResourceExhaustedError(RecollectError):
    """Memory or a quota is used up, or a message is too large."""

    default_reason = "RESOURCE_EXHAUSTED"


class UnauthenticatedError(RecollectError):
    """The token is missing or not valid."""

    default_reason = "UNAUTHENTICATED"


class PermissionDeniedError(RecollectError):
    """The token is valid and does not allow this."""

    default_reason = "PERMISSION_DENIED"


class UnavailableError(RecollectError):
    """No server answered, or it is draining or overloaded. Trying again later may help."""

    default_reason = "UNAVAILABLE"


class DeadlineExceededError(RecollectError):
    """`timeout_s` passed. A write may have happened or not: repeat it with the same request_id."""

    default_reason = "DEADLINE_EXCEEDED"


class InternalError(RecollectError):
    """A fault of the server (`error_id` finds it in its log), or an answer that makes no sense."""

    default_reason = "INTERNAL"


class ClosedError(RecollectError):
    """The client was used after `close`."""

    default_reason = "CLOSED"


class MissingExtraError(RecollectError):
    """An optional part of Recollect is not installed; the message says how to install it."""

    default_reason = "MISSING_EXTRA"


# gRPC status name -> class. Every status but OK is here: a test compares with grpc's own list.
BY_STATUS: dict[str, type[RecollectError]] = {
    "INVALID_ARGUMENT": InvalidArgumentError,
    "OUT_OF_RANGE": InvalidArgumentError,
    "NOT_FOUND": NotFoundError,
    "ALREADY_EXISTS": AlreadyExistsError,
    "FAILED_PRECONDITION": FailedPreconditionError,
    "ABORTED": FailedPreconditionError,
    "RESOURCE_EXHAUSTED": ResourceExhaustedError,
    "UNAUTHENTICATED": UnauthenticatedError,
    "PERMISSION_DENIED": PermissionDeniedError,
    "UNAVAILABLE": UnavailableError,
    # The client never cancels a call that somebody waits for, so this is a server that went away.
    "CANCELLED": UnavailableError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "INTERNAL": InternalError,
    "UNKNOWN": InternalError,
    "DATA_LOSS": InternalError,
    "UNIMPLEMENTED": InternalError,
}

# (gRPC status name, ErrorDetail.reason) -> class, where the reason has a class of its own.
BY_REASON: dict[tuple[str, str], type[RecollectError]] = {
    ("FAILED_PRECONDITION", "STALE_ENTRY"): StaleEntryError,
}


def error_from_status(code: str, message: str, detail: pb.ErrorDetail | None = None) -> RecollectError:
    """The error for a gRPC status name, its message, and the detail that the server sent, if any."""
    detail = detail if detail is not None else pb.ErrorDetail()
    kind = BY_REASON.get((code, detail.reason)) or BY_STATUS.get(code, InternalError)
    if code == "UNIMPLEMENTED":
        message = f"The server does not know this call (is it older than the client?): {message}"
    return kind(
        message or f"The server answered {code} and said no more.",
        reason=detail.reason,
        argument=detail.argument,
        retry_after_s=detail.retry_after_ms / 1000 if detail.retry_after_ms > 0 else None,
        error_id=detail.error_id,
    )
