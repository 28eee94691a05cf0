"""A server process from its start to its end."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import recollect
from tests.server_process import OPERATOR_TOKEN, ServerProcess, run_to_end

pytestmark = pytest.mark.e2e

PATIENCE_S = 60.0
SERVICES = ("recollect.v1.MemoryService", "recollect.v1.NamespaceService")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Waits for something that must happen, however slow the machine."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"did not happen: {what}"
        time.sleep(0.02)


def make(
    client: recollect.Client, *, capacity: int = 100, heads: int = 1, dim: int = 4
) -> recollect.Namespace:
    """A namespace of float32 with one stream of ten entries."""
    ns = client.create_namespace(
        "e2e", layers=[0], heads=heads, key_dim=dim, value_dim=dim, capacity=capacity, dtype="float32"
    )
    ns.add(0, np.ones((1, heads, 10, dim)), np.ones((1, heads, 10, dim)), streams=["a"])
    return ns


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    """A server of this test's own."""
    with ServerProcess() as running:
        yield running


def test_one_line_when_it_is_ready(server: ServerProcess) -> None:
    """A script that waits for the line on standard output cannot connect by it."""
    assert server.ready_line == f"recollect ready on unix://{server.socket} grpc://127.0.0.1:{server.port}"
    for url in (server.unix_url, server.tcp_url):
        with recollect.connect(url) as client:
            assert client.server_info().device == "cpu"


def test_both_addresses_are_one_memory(server: ServerProcess) -> None:
    """What was added over the unix socket is not found over TCP."""
    with recollect.connect(server.unix_url) as one, recollect.connect(server.tcp_url) as other:
        make(one)
        assert other.namespace("e2e").stats().entries == 10


def test_calls_without_a_deadline(server: ServerProcess) -> None:
    """A client that waits as long as it takes is answered with a defect."""
    with recollect.connect(server.unix_url, timeout_s=None) as client:
        assert make(client).stats().entries == 10


def test_only_the_owner_may_open_the_socket(server: ServerProcess) -> None:
    """In dev mode whoever opens the socket may do everything, so nobody else may open it."""
    assert stat.S_IMODE(server.socket.stat().st_mode) == 0o600


@pytest.mark.parametrize("signal_twice", [False, True])
def test_drain_on_sigterm(server: ServerProcess, signal_twice: bool) -> None:
    """A shutdown lost calls in flight, took new ones, or did not end with status 0."""
    tokens, entries = 512, 32_768
    with recollect.connect(server.unix_url) as client, recollect.connect(server.tcp_url, retries=0) as late:
        ns = make(client, capacity=entries, heads=4, dim=64)
        for _ in range(8):
            block = np.random.default_rng(0).standard_normal((1, 4, entries // 8, 64))
            ns.add(0, block, block, streams=["a"])
        late.server_info()
        q = np.ones((1, 4, tokens, 64))
        answers: list[int] = []
        errors: list[Exception] = []

        def attend() -> None:
            try:
                answers.append(ns.attend(0, q, top_k=4, streams=["a"]).output.shape[2])
            except Exception as error:
                errors.append(error)

        callers = [threading.Thread(target=attend) for _ in range(6)]
        for caller in callers:
            caller.start()
        wait_for(lambda: bool(answers or errors), "the first answer")  # the others are in flight now
        server.terminate()
        if signal_twice:
            server.terminate()
        wait_for(lambda: _refused(late), "new calls are refused")
        for caller in callers:
            caller.join(PATIENCE_S)
        assert not errors
        assert answers == [tokens] * 6
        assert server.wait() == 0
        assert "Traceback" not in server.log
        assert not server.socket.exists()


def _refused(client: recollect.Client) -> bool:
    try:
        client.server_info(timeout_s=PATIENCE_S)
    except recollect.UnavailableError:
        return True
    return False


def test_an_idle_server_ends_at_once_with_status_0(server: ServerProcess) -> None:
    """SIGTERM does not end a server that nobody uses."""
    server.terminate()
    assert server.wait() == 0


def test_sighup_ends_nothing(server: ServerProcess) -> None:
    """A tool that renewed certificates takes all memories with it."""
    with recollect.connect(server.unix_url) as client:
        ns = make(client)
        server.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "SIGHUP changes nothing" in server.log, "the server says that it takes no notice")
        assert ns.stats().entries == 10


def test_a_server_ends_with_its_terminal() -> None:
    """One that was tried out goes on when its terminal is closed, holds its port, and nobody knows of it."""
    terminal, inside = pty.openpty()
    try:
        with ServerProcess(stdin=inside) as server:
            server.process.send_signal(signal.SIGHUP)
            assert server.wait() == 0
    finally:
        os.close(inside)
        os.close(terminal)


def test_a_request_that_hangs_does_not_spoil_the_drain(tmp_path: Path) -> None:
    """One hanging request has a clean end take longer than its grace, and look like a defect."""
    with ServerProcess(data_dir=tmp_path, environment={"RECOLLECT_DRAIN_GRACE_S": "0"}) as server:
        port = int(server.admin_url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as hanging:
            head = f"Host: h\r\nAuthorization: Bearer {OPERATOR_TOKEN}\r\nContent-Length: 9\r\n"
            hanging.sendall(f"POST /api/v1/tenants HTTP/1.1\r\n{head}Expect: 100-continue\r\n\r\n".encode())
            assert hanging.recv(12) == b"HTTP/1.1 100"  # now the server waits for the body
            server.terminate()
            assert server.wait() == 0
        lines = [json.loads(line) for line in server.log.splitlines()]
        assert [line for line in lines if line["level"] in ("warning", "error")] == []
        assert any("gave up 1 requests under way" in line["message"] for line in lines)


@pytest.mark.parametrize("service", ["", *SERVICES])
def test_health(server: ServerProcess, service: str) -> None:
    """Whoever supervises the server cannot ask whether it serves."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        check: grpc.UnaryUnaryMultiCallable[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse] = (
            channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=lambda m: m.SerializeToString(),
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
        )
        answer = check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection(server: ServerProcess) -> None:
    """Tools such as grpcurl cannot list the services and their methods."""
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert {*SERVICES, "grpc.health.v1.Health"} <= set(database.get_services())
        described = database.FindFileContainingSymbol(SERVICES[0])
        methods = {method.name for service in described.service for method in service.method}
        assert {"Add", "Search", "Attend", "AttendBackward", "Evict"} <= methods


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--listen", "127.0.0.1:0"], "--dev"),
        ([], "--dev"),
        (["--dev", "--listen", "0.0.0.0:0"], "loopback and unix sockets only"),
        (["--dev", "--listen", "127.0.0.1:0", "--listen", "[::]:0"], "grpc://[::]:0"),
        (["--dev", "--listen", "127.0.0.1"], "unix:///path or host:port"),
        (["--dev", "--listen", "127.0.0.1:99999"], "host:port"),
        (["--dev", "--listen", "unix://relative.sock"], "absolute path"),
        (["--dev", "--listen", f"unix:///{'x' * 200}"], "107"),
        (["--dev", "--listen", "unix:///no/such/folder/s.sock"], "/no/such/folder/s.sock"),
        (["--dev", "--listen", "127.0.0.1:0", "--device", "abacus"], "device"),
        (["--dev", "--listen", "127.0.0.1:0", "--threads", "-3"], "threads"),
    ],
)
def test_refuses_to_start(arguments: list[str], says: str) -> None:
    """A server that is open to all, or that nobody asked for, was started; or its refusal is no help."""
    ended = run_to_end(["serve", *arguments])
    assert ended.returncode == 2
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_refuses_a_port_that_is_taken(server: ServerProcess) -> None:
    """A second server on a port shared it silently, so that calls went to either."""
    ended = run_to_end(["serve", "--dev", "--device", "cpu", "--listen", f"127.0.0.1:{server.port}"])
    assert ended.returncode == 2
    assert str(server.port) in ended.stderr


def test_refuses_a_socket_that_another_server_holds(server: ServerProcess) -> None:
    """A second server took the socket of one that is running, whose memory nobody can reach from then on."""
    ended = run_to_end(["serve", "--dev", "--device", "cpu", "--listen", server.unix_url])
    assert ended.returncode == 2
    assert str(server.socket) in ended.stderr
    with recollect.connect(server.unix_url) as client:
        client.server_info()


def test_a_stale_socket_file_is_replaced(server: ServerProcess) -> None:
    """After a crash the server cannot be started again until somebody removes a file."""
    server.kill()
    assert server.socket.exists()
    with ServerProcess(socket=server.socket) as again, recollect.connect(again.unix_url) as client:
        make(client)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    """A typing error in --listen destroyed somebody's file."""
    precious = tmp_path / "weights"
    precious.write_text("precious")
    ended = run_to_end(["serve", "--dev", "--device", "cpu", "--listen", f"unix://{precious}"])
    assert ended.returncode == 2
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_client_survives_its_server(kind: str) -> None:
    """A killed server is not a clear error, or the client does not find the next one on the same address."""
    with ServerProcess() as first:
        url = first.unix_url if kind == "unix" else first.tcp_url
        with recollect.connect(url, retries=0, timeout_s=PATIENCE_S) as client:
            make(client)
            first.kill()
            with pytest.raises(recollect.UnavailableError) as caught:
                client.server_info()
            assert url in str(caught.value)
            with ServerProcess(socket=first.socket, port=first.port):
                wait_for(lambda: not _refused(client), "the client finds the new server")
                with pytest.raises(recollect.NotFoundError):  # durability: none, and it says so
                    client.namespace("e2e")
                assert make(client).stats().entries == 10


def test_retries_bridge_a_restart() -> None:
    """With retries on, a short restart is seen by no caller."""
    with (
        ServerProcess() as first,
        recollect.connect(first.unix_url, retries=1000, timeout_s=PATIENCE_S) as client,
    ):
        client.server_info()
        first.kill()
        versions: list[str] = []
        caller = threading.Thread(target=lambda: versions.append(client.server_info().version))
        caller.start()
        with ServerProcess(socket=first.socket, port=first.port):
            caller.join(PATIENCE_S)
        assert versions == [recollect.__version__]


def test_a_deadline_is_kept(server: ServerProcess) -> None:
    """A call outlives its timeout, or the server goes on for callers that have left."""
    with recollect.connect(server.unix_url) as client:
        ns = make(client, capacity=65_536, heads=4, dim=64)
        block = np.random.default_rng(0).standard_normal((1, 4, 16_384, 64))
        for _ in range(4):
            ns.add(0, block, block, streams=["a"])
        with pytest.raises(recollect.DeadlineExceededError):
            ns.attend(0, np.ones((1, 4, 2048, 64)), top_k=4, streams=["a"], timeout_s=0.01)
        assert ns.stats().entries == 65_536


def test_a_connection_that_speaks_no_grpc_is_harmless(server: ServerProcess) -> None:
    """Something that connects and sends noise took the server down."""
    for noise in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 1000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
            connection.sendall(noise)
    with recollect.connect(server.tcp_url) as client:
        client.server_info()
    assert server.is_alive
