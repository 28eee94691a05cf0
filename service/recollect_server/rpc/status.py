"""The status table of gRPC: one row for each leaf of the domain's error tree."""

from __future__ import annotations

import math

import grpc

from recollect.v1 import memory_pb2 as pb
from recollect_server.domain import errors

STATUS: dict[type[errors.RecollectError], grpc.StatusCode] = {
    errors.InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NamespaceNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.LayerNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.StreamNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.TenantNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.KeyNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.RegionNotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.NamespaceExistsError: grpc.StatusCode.ALREADY_EXISTS,
    errors.TenantExistsError: grpc.StatusCode.ALREADY_EXISTS,
    errors.StaleEntryError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SequenceNotReachedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RevisionConflictError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RegionUnusableError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.TooManyRegionsError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.MessageTooLargeError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.QuotaExceededError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.MemoryExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TooManyNamespacesError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.TooManyStreamsError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.RegistryUnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.DrainingError: grpc.StatusCode.UNAVAILABLE,
    errors.OverloadedError: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}


def status_of(error: errors.RecollectError) -> grpc.StatusCode:
    """The status that tells a caller about the error."""
    return STATUS[type(error)]


def detail_of(error: errors.RecollectError) -> pb.ErrorDetail:
    """What a program can read of the error; goes with it in trailing metadata."""
    return pb.ErrorDetail(
        reason=error.reason,
        argument=error.argument,
        error_id=error.error_id if isinstance(error, errors.InternalError) else "",
        retry_after_ms=math.ceil((error.retry_after_s or 0) * 1000),
    )
