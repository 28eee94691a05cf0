"""What is sent again after a failure, on a real gRPC server that fails as often as it is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

import recollect
from recollect import Client, Namespace, NamespaceSpec
from recollect._retry import Attempts, Deadline, RetryPolicy
from recollect.errors import BY_STATUS
from recollect.v1 import memory_pb2 as pb
from tests.unit.client.tiny_server import INFO, TinyServer, failing_first, refuse, serving

SPEC = NamespaceSpec((0,), 1, 2, 2, 9, "float32")
NAMESPACE = pb.Namespace(name="n", spec=SPEC.to_message())
ARRAY = np.ones((1, 1, 1, 2), np.float32)
OUTPUT = pb.AttendResponse(
    output=pb.Tensor(data=b"\0" * 8, dtype=pb.DTYPE_FLOAT32, shape=[1, 1, 1, 2]),
    lse=pb.Tensor(data=b"\0" * 4, dtype=pb.DTYPE_FLOAT32, shape=[1, 1, 1]),
    next_sequences=[1],
)


@pytest.fixture
def server() -> TinyServer:
    return TinyServer()


@pytest.fixture
def url(server: TinyServer, tmp_path: Path) -> Iterator[str]:
    with serving(server, tmp_path) as where:
        yield where


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with recollect.connect(url, retries=3) as connected:
        yield connected


@pytest.fixture
def namespace(server: TinyServer, client: Client) -> Namespace:
    server.handlers["GetNamespace"] = lambda request, context: pb.GetNamespaceResponse(namespace=NAMESPACE)
    return client.namespace("n")


def attend(namespace: Namespace) -> object:
    return namespace.attend(0, ARRAY, top_k=1, streams=["s"], with_ids=False)


def add(namespace: Namespace) -> object:
    return namespace.add(0, ARRAY, ARRAY, streams=["s"])


def evict(namespace: Namespace) -> object:
    return namespace.evict(streams=["s"], oldest=1)


LASTING = [code for code in grpc.StatusCode if code.name not in ("OK", "UNAVAILABLE", "CANCELLED")]
ADDED = pb.AddResponse(first_ids=[0], next_sequences=[1])

REPEATED: list[tuple[str, Message, Callable[[Namespace], object]]] = [
    ("Attend", OUTPUT, attend),
    ("Add", ADDED, add),
    ("Evict", pb.EvictResponse(), evict),
    ("GetStats", pb.GetStatsResponse(), lambda namespace: namespace.stats()),
]


@pytest.mark.parametrize(("name", "reply", "call"), REPEATED)
def test_a_short_outage_goes_unnoticed(
    server: TinyServer, namespace: Namespace, name: str, reply: Message, call: Callable[[Namespace], object]
) -> None:
    """A server that restarts would end every training run that uses it."""
    server.handlers[name] = failing_first(3, reply)
    call(namespace)
    assert server.count(name) == 4


@pytest.mark.parametrize(("name", "reply", "call"), REPEATED)
def test_attempts_are_counted(
    server: TinyServer, namespace: Namespace, name: str, reply: Message, call: Callable[[Namespace], object]
) -> None:
    """A client would hammer a server that is away, or hide the outage from its user."""
    server.handlers[name] = failing_first(99, reply)
    with pytest.raises(recollect.UnavailableError) as caught:
        call(namespace)
    assert caught.value.reason == "DRAINING"
    assert caught.value.retry_after_s == 0.001
    assert server.count(name) == 4


def test_a_repeated_write_has_the_same_request_id(server: TinyServer, namespace: Namespace) -> None:
    """A write whose answer was lost would be done twice."""
    server.handlers["Add"] = failing_first(2, ADDED)
    add(namespace)
    add(namespace)
    ids = [pb.AddRequest.FromString(request).request_id for name, request in server.requests if name == "Add"]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    assert all(ids)


@pytest.mark.parametrize("code", LASTING)
def test_what_lasts_is_not_repeated(server: TinyServer, namespace: Namespace, code: grpc.StatusCode) -> None:
    """An error that will never go away would be repeated, or come out as another class."""
    server.handlers["Attend"] = failing_first(1, OUTPUT, code=code, detail=pb.ErrorDetail(reason="LASTING"))
    with pytest.raises(recollect.RecollectError) as caught:
        attend(namespace)
    assert type(caught.value) is BY_STATUS[code.name]
    assert server.count("Attend") == 1


@pytest.mark.parametrize(("name", "reply", "call"), REPEATED)
def test_a_quota_that_frees_itself_is_waited_for(
    server: TinyServer, namespace: Namespace, name: str, reply: Message, call: Callable[[Namespace], object]
) -> None:
    """A tenant at its rate would see errors where a pause of milliseconds is all that is needed."""
    detail = pb.ErrorDetail(reason="QUOTA_CALLS_PER_SECOND", retry_after_ms=1)
    server.handlers[name] = failing_first(3, reply, code=grpc.StatusCode.RESOURCE_EXHAUSTED, detail=detail)
    call(namespace)
    assert server.count(name) == 4


def create(client: Client, *, safe: bool) -> None:
    client.create_namespace("n", layers=[0], heads=1, key_dim=2, value_dim=2, capacity=9, exist_ok=safe)


def delete(client: Client, *, safe: bool) -> None:
    client.delete_namespace("n", missing_ok=safe)


UNSAFE: list[tuple[str, Message, Callable[..., None]]] = [
    ("CreateNamespace", pb.CreateNamespaceResponse(namespace=NAMESPACE), create),
    ("DeleteNamespace", pb.DeleteNamespaceResponse(), delete),
]


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("reason", ["", "REGISTRY_UNAVAILABLE"])
@pytest.mark.parametrize(("name", "reply", "call"), UNSAFE)
def test_namespaces_are_repeated_only_where_harmless(
    server: TinyServer,
    client: Client,
    name: str,
    reply: Message,
    call: Callable[..., None],
    reason: str,
    safe: bool,
) -> None:
    """A repeat would find the first attempt's work and report ALREADY_EXISTS or NOT_FOUND for a success."""
    server.handlers[name] = failing_first(1, reply, detail=pb.ErrorDetail(reason=reason, retry_after_ms=1))
    if safe:
        call(client, safe=safe)
    else:
        with pytest.raises(recollect.UnavailableError):
            call(client, safe=safe)
    assert server.count(name) == (2 if safe else 1)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "OVERLOADED"),
        (grpc.StatusCode.UNAVAILABLE, "DRAINING"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_CALLS_IN_FLIGHT"),
    ],
)
@pytest.mark.parametrize(("name", "reply", "call"), UNSAFE)
def test_what_was_refused_may_be_repeated(
    server: TinyServer,
    client: Client,
    name: str,
    reply: Message,
    call: Callable[..., None],
    code: grpc.StatusCode,
    reason: str,
) -> None:
    """A busy server would make calls fail that it never began with."""
    detail = pb.ErrorDetail(reason=reason, retry_after_ms=1)
    server.handlers[name] = failing_first(2, reply, code=code, detail=detail)
    call(client, safe=False)
    assert server.count(name) == 3


def test_retries_can_be_switched_off(server: TinyServer, url: str) -> None:
    """A caller with its own retry loop would multiply the attempts."""
    server.handlers["GetServerInfo"] = failing_first(1, pb.GetServerInfoResponse())
    with recollect.connect(url, retries=0) as client, pytest.raises(recollect.UnavailableError):
        client.server_info()
    assert server.count("GetServerInfo") == 1


def test_async_client_repeats_too(server: TinyServer, url: str) -> None:
    """The async client would fail where the sync client carries on."""
    server.handlers["GetServerInfo"] = failing_first(2, INFO)

    async def call() -> recollect.ServerInfo:
        async with recollect.connect_async(url) as client:
            return await client.server_info()

    assert asyncio.run(call()).version == "1"
    assert server.count("GetServerInfo") == 3


def test_a_call_has_a_deadline(server: TinyServer, url: str) -> None:
    """A server that hangs would hang its clients for ever."""

    def hang(request: bytes, context: grpc.ServicerContext) -> Message:
        given_up = threading.Event()
        context.add_callback(given_up.set)
        given_up.wait()
        return refuse(context, grpc.StatusCode.INTERNAL, "nobody waits")

    server.handlers["GetServerInfo"] = hang
    with recollect.connect(url) as client, pytest.raises(recollect.DeadlineExceededError, match="unix://"):
        client.server_info(timeout_s=0.05)

    async def call() -> None:
        async with recollect.connect_async(url, timeout_s=0.05) as client:
            await client.server_info()

    with pytest.raises(recollect.DeadlineExceededError):
        asyncio.run(call())


def test_no_attempt_begins_that_the_deadline_would_cut() -> None:
    """A call would outlive its deadline, waiting for an attempt that cannot end in time."""
    error = recollect.UnavailableError("away", retry_after_s=3600)
    attempts = RetryPolicy(3).start(Deadline(30), retry_safe=True)
    with pytest.raises(recollect.UnavailableError) as caught:
        attempts.pause_s(error)
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        recollect.UnavailableError("away", retry_after_s=7),
        recollect.ResourceExhaustedError("busy", reason="QUOTA_CALLS_PER_SECOND", retry_after_s=7),
    ],
)
def test_pauses_honour_the_server(error: recollect.RecollectError) -> None:
    """A busy server would be asked again before it said it could answer, or by all clients at once."""
    attempts = Attempts(50, Deadline(None))
    pauses = [attempts.pause_s(error) for _ in range(50)]
    assert all(7 <= pause <= 10.5 for pause in pauses)
    assert max(pauses) - min(pauses) > 0.5


def test_pauses_grow() -> None:
    """A server that is away would be asked all the time."""
    attempts = Attempts(2000, Deadline(None))
    pauses = [attempts.pause_s(recollect.UnavailableError("away")) for _ in range(2000)]
    assert max(pauses[:2]) <= 0.1
    assert max(pauses) > 0.5


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), "soon"])
def test_timeouts_are_checked(timeout_s: float) -> None:
    """A timeout of zero or less would fail every call with a riddle."""
    with pytest.raises(recollect.InvalidArgumentError) as caught:
        recollect.connect("grpc://127.0.0.1:1", timeout_s=timeout_s)
    assert caught.value.argument == "timeout_s"
