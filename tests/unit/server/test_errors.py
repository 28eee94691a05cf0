"""Errors: one tree, one table for each side of the wire, and defects that tell nothing but their id."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.message import Message

import recollect
from recollect import errors as client_errors
from recollect.v1 import memory_pb2 as pb
from recollect_server.admin import problems
from recollect_server.bootstrap import build_embedded_core
from recollect_server.domain import errors
from recollect_server.embedded import EmbeddedTransport
from recollect_server.rpc import endpoint as rpc_endpoint
from recollect_server.rpc import status
from recollect_server.rpc.call import Call
from recollect_server.settings import Settings

INFO = "/recollect.v1.NamespaceService/GetServerInfo"

PATIENCE_S = 20.0

CLIENT_OF: dict[type[errors.RecollectError], type[recollect.RecollectError]] = {
    errors.InvalidArgumentError: recollect.InvalidArgumentError,
    errors.NamespaceNotFoundError: recollect.NotFoundError,
    errors.LayerNotFoundError: recollect.NotFoundError,
    errors.StreamNotFoundError: recollect.NotFoundError,
    errors.TenantNotFoundError: recollect.NotFoundError,
    errors.KeyNotFoundError: recollect.NotFoundError,
    errors.RegionNotFoundError: recollect.NotFoundError,
    errors.NamespaceExistsError: recollect.AlreadyExistsError,
    errors.TenantExistsError: recollect.AlreadyExistsError,
    errors.StaleEntryError: recollect.StaleEntryError,
    errors.SequenceNotReachedError: recollect.FailedPreconditionError,
    errors.RevisionConflictError: recollect.FailedPreconditionError,
    errors.RegionUnusableError: recollect.FailedPreconditionError,
    errors.TooManyRegionsError: recollect.ResourceExhaustedError,
    errors.MessageTooLargeError: recollect.ResourceExhaustedError,
    errors.QuotaExceededError: recollect.ResourceExhaustedError,
    errors.MemoryExhaustedError: recollect.ResourceExhaustedError,
    errors.TooManyNamespacesError: recollect.ResourceExhaustedError,
    errors.TooManyStreamsError: recollect.ResourceExhaustedError,
    errors.UnauthenticatedError: recollect.UnauthenticatedError,
    errors.PermissionDeniedError: recollect.PermissionDeniedError,
    errors.RegistryUnavailableError: recollect.UnavailableError,
    errors.DrainingError: recollect.UnavailableError,
    errors.OverloadedError: recollect.UnavailableError,
    errors.DeadlineExceededError: recollect.DeadlineExceededError,
    errors.InternalError: recollect.InternalError,
}


def leaves(kind: type[errors.RecollectError]) -> Iterator[type[errors.RecollectError]]:
    """Errors that are raised: those without others below them."""
    below = kind.__subclasses__()
    if not below:
        yield kind
    for each in below:
        yield from leaves(each)


LEAVES = sorted(leaves(errors.RecollectError), key=lambda kind: kind.__name__)


def made(kind: type[errors.RecollectError]) -> errors.RecollectError:
    """One of its kind."""
    if kind is errors.InternalError:
        return errors.InternalError("e-1")
    if kind is errors.InvalidArgumentError:
        return errors.InvalidArgumentError("keys", "is wrong")
    if kind is errors.UnauthenticatedError:
        return errors.UnauthenticatedError()
    if kind is errors.QuotaExceededError:
        return errors.QuotaExceededError("bytes", "what happened", retry_after_s=1.5)
    return kind("what happened", argument="keys", retry_after_s=1.5)


def test_the_table_is_the_tree() -> None:
    """A leaf has no status, so that raising it is a defect; or a table names what is never raised."""
    assert set(status.STATUS) == set(LEAVES)
    assert set(problems.STATUS) == set(LEAVES)
    assert set(CLIENT_OF) == set(LEAVES)


def test_reasons_are_distinct() -> None:
    """Two errors cannot be told apart by a program."""
    reasons = [kind.reason for kind in LEAVES]
    assert len(set(reasons)) == len(reasons)
    assert "UNKNOWN" not in reasons


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_leaf_reaches_the_caller_as_itself(kind: type[errors.RecollectError]) -> None:
    """An error of the server becomes another one in the client, or loses what it says."""
    error = made(kind)
    detail = pb.ErrorDetail.FromString(status.detail_of(error).SerializeToString())
    code = status.status_of(error).name
    came = client_errors.error_from_status(code, error.message, detail)
    assert type(came) is CLIENT_OF[kind]
    assert came.reason == error.reason
    assert came.argument == error.argument
    assert came.retry_after_s == error.retry_after_s
    assert came.message == error.message
    assert came.error_id == ("e-1" if kind is errors.InternalError else "")


def test_every_status_has_a_client_error() -> None:
    """A status of gRPC is no error of ours."""
    statuses = {code.name for code in grpc.StatusCode} - {"OK"}
    assert statuses == set(client_errors.BY_STATUS)


@pytest.fixture
def transport() -> Iterator[EmbeddedTransport]:
    """A server in this process."""
    opened = EmbeddedTransport(build_embedded_core(Settings(device="cpu")))
    yield opened
    opened.close()


def test_a_defect_tells_its_id_and_no_more(
    transport: EmbeddedTransport, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A caller sees the inside of the server, or the log does not have the defect under its id, once."""
    endpoint = transport._core.endpoint
    path = "/recollect.v1.NamespaceService/GetServerInfo"

    async def broken(call: Call, request: Message) -> Message:
        raise RuntimeError("secret of the house")

    route = rpc_endpoint.Route(path=path, request_type=pb.GetServerInfoRequest, run=broken, streams=False)
    monkeypatch.setitem(endpoint.routes, path, route)
    with caplog.at_level(logging.ERROR):
        reply = transport.call(path, pb.GetServerInfoRequest(), timeout_s=60, credential=None)
    assert reply.code == "INTERNAL"
    assert reply.detail is not None
    assert reply.detail.error_id in reply.message
    assert "secret" not in reply.message
    records = [record for record in caplog.records if reply.detail.error_id in record.getMessage()]
    assert len(records) == 1
    assert "secret" in (records[0].exc_text or "")


def test_a_closed_server_drains(transport: EmbeddedTransport) -> None:
    """A call after close hangs, or dies of something that is no error of the tree."""
    transport.close()
    request = pb.GetServerInfoRequest()
    reply = transport.call(INFO, request, timeout_s=60, credential=None)
    assert reply.code == "UNAVAILABLE"
    assert reply.detail is not None
    assert reply.detail.reason == "DRAINING"
    assert reply.detail.retry_after_ms > 0


def test_who_calls_while_it_is_closed_is_answered() -> None:
    """A thread that calls just when another one closes the memory waits for an answer for ever."""
    for _ in range(20):
        closing = EmbeddedTransport(build_embedded_core(Settings(device="cpu")))
        codes: list[str] = []

        def call(to: EmbeddedTransport = closing, codes: list[str] = codes) -> None:
            while not codes or codes[-1] == "OK":
                request = pb.GetServerInfoRequest()
                codes.append(to.call(INFO, request, timeout_s=None, credential=None).code)

        threads = [threading.Thread(target=call, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        closing.close()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in threads)
        assert set(codes) <= {"OK", "UNAVAILABLE"}


def test_every_method_of_the_wire_has_a_route(transport: EmbeddedTransport) -> None:
    """A method in the proto is not served."""
    endpoint = transport._core.endpoint
    methods = {
        f"/{service.full_name}/{method.name}"
        for service in pb.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert set(endpoint.routes) == methods
