"""The status table of HTTP, and errors as Problem Details (RFC 9457)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus

from starlette.responses import JSONResponse

from recollect_server.domain import errors

PROBLEM_TYPE = "application/problem+json"
FAULTS_MAX = 16
"""Of those that a problem lists."""

STATUS: dict[type[errors.RecollectError], int] = {
    errors.InvalidArgumentError: 400,
    errors.NamespaceNotFoundError: 404,
    errors.LayerNotFoundError: 404,
    errors.StreamNotFoundError: 404,
    errors.TenantNotFoundError: 404,
    errors.KeyNotFoundError: 404,
    errors.RegionNotFoundError: 404,
    errors.NamespaceExistsError: 409,
    errors.TenantExistsError: 409,
    errors.StaleEntryError: 409,
    errors.SequenceNotReachedError: 409,
    errors.RevisionConflictError: 412,
    errors.RegionUnusableError: 409,
    errors.TooManyRegionsError: 429,
    errors.MessageTooLargeError: 413,
    errors.MemoryExhaustedError: 429,
    errors.TooManyNamespacesError: 429,
    errors.TooManyStreamsError: 429,
    errors.QuotaExceededError: 429,
    errors.UnauthenticatedError: 401,
    errors.PermissionDeniedError: 403,
    errors.DrainingError: 503,
    errors.OverloadedError: 503,
    errors.RegistryUnavailableError: 503,
    errors.DeadlineExceededError: 504,
    errors.InternalError: 500,
}
"""One row for each leaf of the domain's error tree."""

RETRY_AFTER_S = 1


def status_of(error: errors.RecollectError) -> int:
    """The status that tells a caller about the error."""
    return STATUS[type(error)]


def problem_of(error: errors.RecollectError, *, instance: str) -> JSONResponse:
    """An error of the domain as a response."""
    status = status_of(error)
    headers = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_s is not None or status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or RETRY_AFTER_S)))
    return problem(
        status,
        error.reason,
        error.message,
        instance=instance,
        argument=error.argument,
        error_id=error.error_id if isinstance(error, errors.InternalError) else "",
        headers=headers,
    )


def problem(
    status: int,
    reason: str,
    detail: str,
    *,
    instance: str,
    argument: str = "",
    error_id: str = "",
    more: Mapping[str, Sequence[Mapping[str, object]]] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A problem as a response.

    Args:
        status: HTTP status.
        reason: Machine-readable and stable.
        detail: For people: what is wrong, and what to do.
        instance: Path of the request.
        argument: The one to blame, or "".
        error_id: Of an internal error, or "".
        more: Members of this kind of problem alone.
        headers: That go with it.
    """
    body = {
        "type": f"urn:recollect:problem:{reason.lower().replace('_', '-')}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": instance,
        "reason": reason,
        "argument": argument,
        "error_id": error_id,
        **(more or {}),
    }
    return JSONResponse(body, status_code=status, headers=dict(headers or {}), media_type=PROBLEM_TYPE)
