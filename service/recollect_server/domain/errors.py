"""The one error tree of the server. Each transport has one table that turns it into statuses."""

from __future__ import annotations


class RecollectError(Exception):
    """Anything that the server tells a caller about a call that did not succeed.

    Attributes:
        reason: Machine-readable and stable; the message is for people.
        argument: The argument to blame, or "".
        retry_after_s: When trying again may help, or None.
    """

    reason: str = "UNKNOWN"

    def __init__(self, message: str, *, argument: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.argument = argument
        self.retry_after_s = retry_after_s


class InvalidArgumentError(RecollectError):
    """The call is wrong whatever the server holds."""

    reason = "INVALID_ARGUMENT"

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(f"{argument}: {message}", argument=argument)


class NotFoundError(RecollectError):
    """What the call names is not there, or is not the caller's."""


class NamespaceNotFoundError(NotFoundError):
    """No namespace of this name belongs to the caller."""

    reason = "NAMESPACE_NOT_FOUND"


class LayerNotFoundError(NotFoundError):
    """The namespace has no memory for this layer."""

    reason = "LAYER_NOT_FOUND"


class StreamNotFoundError(NotFoundError):
    """Nothing was ever added to this stream, or it was forgotten."""

    reason = "STREAM_NOT_FOUND"


class TenantNotFoundError(NotFoundError):
    """No tenant of this name, or not one that the caller may see."""

    reason = "TENANT_NOT_FOUND"


class KeyNotFoundError(NotFoundError):
    """No key of this id, or not one that the caller may see."""

    reason = "KEY_NOT_FOUND"


class RegionNotFoundError(NotFoundError):
    """No region of shared memory of this id is open, or it is not the caller's."""

    reason = "REGION_NOT_FOUND"


class AlreadyExistsError(RecollectError):
    """What is to be made is there already."""


class NamespaceExistsError(AlreadyExistsError):
    """A namespace of this name exists, with another spec or unexpectedly."""

    reason = "NAMESPACE_EXISTS"


class TenantExistsError(AlreadyExistsError):
    """A tenant of this name exists."""

    reason = "TENANT_EXISTS"


class FailedPreconditionError(RecollectError):
    """The call is well-formed, but what is stored does not allow it."""


class StaleEntryError(FailedPreconditionError):
    """An entry that the call needs has been evicted."""

    reason = "STALE_ENTRY"


class SequenceNotReachedError(FailedPreconditionError):
    """The stream has not yet reached the sequence that the caller wants to read."""

    reason = "SEQUENCE_NOT_REACHED"


class RevisionConflictError(FailedPreconditionError):
    """Somebody else changed it in between: read it again, and decide again."""

    reason = "REVISION_CONFLICT"


class RegionUnusableError(FailedPreconditionError):
    """Memory cannot be shared with this caller, or another call uses the region."""

    reason = "REGION_UNUSABLE"


class ResourceExhaustedError(RecollectError):
    """A bound stands in the way: on what may be stored, or on what a tenant may ask for at a time."""


class MemoryExhaustedError(ResourceExhaustedError):
    """The server may not allocate more for what is stored."""

    reason = "MEMORY_EXHAUSTED"


class TooManyNamespacesError(ResourceExhaustedError):
    """The tenant has as many namespaces as it may."""

    reason = "TOO_MANY_NAMESPACES"


class TooManyStreamsError(ResourceExhaustedError):
    """The namespace has as many streams as it may."""

    reason = "TOO_MANY_STREAMS"


class TooManyRegionsError(ResourceExhaustedError):
    """As much memory is shared with the tenant, or with all, as may be."""

    reason = "TOO_MANY_REGIONS"


class MessageTooLargeError(ResourceExhaustedError):
    """The request has more bytes than the server takes in a message."""

    reason = "MESSAGE_TOO_LARGE"


class QuotaExceededError(ResourceExhaustedError):
    """A quota of the tenant stands in the way; `reason` says which: QUOTA_BYTES, QUOTA_CALLS_PER_SECOND, ...

    Args:
        quota: Its name in `Quotas`, without the ending.
        message: What is used, what is allowed, what to do.
    """

    reason = "QUOTA"

    def __init__(self, quota: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.reason = f"QUOTA_{quota.upper()}"


class UnauthenticatedError(RecollectError):
    """The call carries no credential that the server knows: none, malformed, unknown, expired, revoked.

    One message for all of them: it tells an attacker nothing.
    """

    reason = "UNAUTHENTICATED"

    def __init__(self) -> None:
        super().__init__("no valid API key; send one as: authorization: Bearer rk_...")


class PermissionDeniedError(RecollectError):
    """The credential is known but does not allow this call."""

    reason = "PERMISSION_DENIED"


class UnavailableError(RecollectError):
    """Not now; the same call may succeed later."""


class DrainingError(UnavailableError):
    """The server is shutting down and takes no new work."""

    reason = "DRAINING"


class OverloadedError(UnavailableError):
    """More work is waiting than the server queues."""

    reason = "OVERLOADED"


class RegistryUnavailableError(UnavailableError):
    """The registry of tenants, keys and namespaces cannot be reached."""

    reason = "REGISTRY_UNAVAILABLE"


class DeadlineExceededError(RecollectError):
    """The caller's deadline passed before the work began."""

    reason = "DEADLINE_EXCEEDED"


class InternalError(RecollectError):
    """A defect of the server. The log has it under `error_id`."""

    reason = "INTERNAL"

    def __init__(self, error_id: str) -> None:
        super().__init__(f"internal error; quote {error_id} to whoever runs this server")
        self.error_id = error_id
