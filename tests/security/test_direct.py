"""Calls without gRPC: who may make them, and what the server does with bytes that are none."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import recollect
from recollect.v1 import memory_pb2 as pb
from tests.clients import path_of
from tests.contract import messages
from tests.direct_frames import GREETING, Peer, call_frame, frame, raw_direct
from tests.installation import Installation
from tests.security.conftest import NAMESPACE, Tokens
from tests.security.test_rpc_matrix import BUILD, NAMES, NOT_VALID, RULES, UNNAMED, credential
from tests.server_process import ServerProcess

MESSAGE_BYTES_MAX = 100_000
STREAMED = {"SearchStream"}
HERE = [name for name in NAMES if name not in STREAMED]
CONNECTIONS_MAX, BUFFER_BYTES = 256, 65_536


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server without keys."""
    with ServerProcess(limits={"message_bytes_max": MESSAGE_BYTES_MAX, "receive_s_max": 1}) as running:
        yield running
        assert "Traceback" not in running.log


@pytest.fixture
def peer(server: ServerProcess) -> Iterator[Peer]:
    """One connection; the server answers others when it is over."""
    with Peer(server.socket) as connected:
        assert connected.greeting == GREETING
        yield connected
    assert raw_direct(server.socket)("GetServerInfo", b"").code == "OK"


@pytest.mark.parametrize("kind", NOT_VALID)
@pytest.mark.parametrize("name", HERE)
def test_a_credential_that_is_not_valid(
    name: str, kind: str, installation: Installation, tokens: Tokens
) -> None:
    """A call is answered without a valid key, or the refusal tells more than over gRPC."""
    call = raw_direct(installation.server.socket, token=credential(kind, tokens))
    refused, plain = call(name, BUILD[name](NAMESPACE)), installation.rpc("GetServerInfo", b"", token=None)
    assert refused == plain
    assert refused.code == "UNAUTHENTICATED"


@pytest.mark.parametrize("name", HERE)
def test_nothing_is_read_before_the_credential_is_checked(
    name: str, installation: Installation, tokens: Tokens
) -> None:
    """Whoever has no key, or not the right one, can have the server parse, or even receive, what it sends."""
    path = installation.server.socket
    for junk in (b"\xff" * 64, bytes(100 * 1024 * 1024)):
        assert raw_direct(path)(name, junk).code == "UNAUTHENTICATED"
    for scope in ("read", "write", "admin"):
        if RULES[name] not in ("any", scope):
            refused = raw_direct(path, token=getattr(tokens, scope))(name, b"\xff" * 64)
            assert refused.code == "PERMISSION_DENIED"
    assert raw_direct(path, token=tokens.right)(name, b"\xff" * 64).code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("name", [name for name in HERE if name not in UNNAMED | {"OpenRegion"}])
def test_another_tenants_namespace_is_one_that_does_not_exist(
    name: str, installation: Installation, tokens: Tokens
) -> None:
    """A tenant can tell that another's namespace exists, or reach it."""
    call, absent = raw_direct(installation.server.socket, token=tokens.theirs), "n" * len(NAMESPACE)
    foreign, missing = (call(name, BUILD[name](each)) for each in (NAMESPACE, absent))
    assert foreign.code == "NOT_FOUND"
    assert foreign.message.replace(NAMESPACE, absent) == missing.message
    assert foreign.detail == missing.detail


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        frame(b"", b"", mark=b"RCD2"),
        frame(b"\xff" * 64, b""),
        frame(bytes(16 * 1024 + 1), b""),
        b"RCD1" + b"\xff" * 8,
        bytes(1_000_000),
    ],
    ids=["http", "http2", "version", "no head", "long head", "huge", "zeros"],
)
def test_what_is_no_call_closes_its_connection(peer: Peer, sent: bytes) -> None:
    """Somebody's garbage is taken for a call, keeps the connection, or harms the server."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it did not want to hear more
        peer.socket.sendall(sent)
    assert peer.is_closed()


@pytest.mark.parametrize(
    "path", ["", "/recollect.v1.MemoryService/Nothing", "Attend", path_of("SearchStream")]
)
def test_what_is_not_answered_here_is_said_so(peer: Peer, path: str) -> None:
    """A call that is not there is an error of the server, or ends the connection."""
    peer.socket.sendall(call_frame(path, b"") * 2)
    for _ in range(2):
        head, message = peer.answer()
        assert (head.status, message) == ("UNIMPLEMENTED", b"")
        assert path in head.message


def test_a_message_that_is_too_large_is_refused(peer: Peer) -> None:
    """A message of any size has the server make room for it."""
    size = MESSAGE_BYTES_MAX + 64 * 1024 + 1
    peer.socket.sendall(call_frame(path_of("Attend"), b"")[:8] + size.to_bytes(4, "little"))
    head = pb.DirectCall(method=path_of("Attend")).SerializeToString()
    peer.socket.sendall(head)
    answered, _ = peer.answer()
    assert (answered.status, answered.error.reason) == ("RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE")
    assert f"{size:,}" in answered.message
    assert peer.is_closed()  # what is left of it would be taken for the next call


def test_a_message_that_does_not_come_is_not_awaited_for_ever(peer: Peer) -> None:
    """Callers that stop in the middle of their messages keep the server's room for them."""
    whole = call_frame(path_of("Attend"), bytes(1000))
    peer.socket.sendall(whole[:-1])
    answered, _ = peer.answer()
    assert answered.status == "DEADLINE_EXCEEDED"
    assert "did not arrive" in answered.message
    assert peer.is_closed()


@pytest.mark.parametrize("piece", [1, 7, 50_000])
def test_however_a_call_comes_it_is_one(server: ServerProcess, piece: int) -> None:
    """A call is lost, or stored twice, when it comes in pieces, or together with the next one."""
    call, name = raw_direct(server.socket), f"pieces-{piece}"
    assert call("CreateNamespace", messages.create(name)).code == "OK"
    add = call_frame(path_of("Add"), messages.add(name).SerializeToString())
    stats = call_frame(path_of("GetStats"), pb.GetStatsRequest(namespace=name).SerializeToString())
    sent = add + stats + add + stats
    with Peer(server.socket) as peer:
        for first in range(0, len(sent), piece):
            peer.socket.sendall(sent[first : first + piece])
        counts = []
        for _ in range(2):
            assert not peer.answer()[0].status
            counts.append(pb.GetStatsResponse.FromString(peer.answer()[1]).entries)
    assert counts[0] > 0
    assert counts[1] == 2 * counts[0]


def test_many_calls_that_are_sent_ahead(server: ServerProcess) -> None:
    """More than the server reads ahead are lost, or it stops listening to who has sent them."""
    count, info = 3000, call_frame(path_of("GetServerInfo"), b"")
    assert count * len(info) > 2 * BUFFER_BYTES
    with Peer(server.socket) as peer:
        sending = threading.Thread(target=peer.socket.sendall, args=(count * info,))
        sending.start()
        assert all(not peer.answer()[0].status for _ in range(count))
        sending.join()


def test_a_message_longer_than_the_servers_buffer(server: ServerProcess) -> None:
    """A large message is cut off at the size of a buffer, or the call behind it is lost."""
    call = raw_direct(server.socket)
    assert call("CreateNamespace", messages.create("long")).code == "OK"
    request = messages.add("long")
    request.request_id = "r" * 90_000  # too long for one, which is found when all of it is there
    with Peer(server.socket) as peer:
        info = call_frame(path_of("GetServerInfo"), b"")
        peer.socket.sendall(call_frame(path_of("Add"), request.SerializeToString()) + info)
        head, _ = peer.answer()
        assert (head.status, head.error.argument) == ("INVALID_ARGUMENT", "request_id")
        assert not peer.answer()[0].status


def test_who_comes_when_there_are_too_many_takes_grpc(server: ServerProcess) -> None:
    """Many connections lock all later callers out, or the server has no end of them."""
    peers = [Peer(server.socket) for _ in range(CONNECTIONS_MAX)]
    try:
        with Peer(server.socket) as late:
            assert late.greeting == b""
        with recollect.connect(server.unix_url, retries=0) as client:
            assert client.server_info().version
    finally:
        for peer in peers:
            peer.socket.close()


def test_only_the_owner_may_connect(server: ServerProcess) -> None:
    """Other users of the machine reach the memory of a development server."""
    for path in (server.socket, Path(f"{server.socket}.direct")):
        assert path.stat().st_mode & 0o777 == 0o600
