"""Calls without gRPC: what the client does where there is no such server, or no sound one."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import recollect
from recollect import _direct, _frames
from recollect.v1 import memory_pb2 as pb
from tests.clients import OPEN
from tests.direct_frames import GREETING, SUFFIX, frame
from tests.server_process import ServerProcess
from tests.unit.client.tiny_server import INFO, TinyServer, serving

PATIENCE_S = 20.0


class Beside:
    """A socket beside gRPC's: what a test scripts is said on each connection, one script for each.

    Attributes:
        heads: Of the calls that came.
        count: Connections so far.
    """

    def __init__(self, folder: Path, *scripts: Callable[[Beside, socket.socket], None]) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{folder / 's.sock'}{SUFFIX}")
        self._listener.listen(32)
        self._scripts = list(scripts)
        self._connections: list[socket.socket] = []
        self.heads: list[pb.DirectCall] = []
        self.count = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            script = self._scripts[min(self.count, len(self._scripts) - 1)]
            self.count += 1
            threading.Thread(target=self._run, args=(script, connection), daemon=True).start()

    def _run(self, script: Callable[[Beside, socket.socket], None], connection: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):  # the client left
            script(self, connection)

    def read(self, connection: socket.socket) -> None:
        """One call."""
        prefix = _exactly(connection, 12)
        head, message = (int.from_bytes(prefix[at : at + 4], "little") for at in (4, 8))
        self.heads.append(pb.DirectCall.FromString(_exactly(connection, head)))
        _exactly(connection, message)

    def close(self) -> None:
        """Ends it, and all connections."""
        self._listener.close()
        for connection in self._connections:
            connection.close()


def _exactly(connection: socket.socket, size: int) -> bytes:
    taken = b""
    while len(taken) < size:
        more = connection.recv(size - len(taken))
        if not more:
            raise EOFError
        taken += more
    return taken


def answer(version: str = "direct") -> bytes:
    """To GetServerInfo."""
    said = pb.GetServerInfoResponse(version=version, limits=INFO.limits)
    return frame(b"", said.SerializeToString())


def answering(*sent: bytes) -> Callable[[Beside, socket.socket], None]:
    """Lets the client in, and answers one call after the other; the last one's answer again and again."""

    def script(beside: Beside, connection: socket.socket) -> None:
        connection.sendall(GREETING)
        for said in (*sent, *[sent[-1]] * 100):
            beside.read(connection)
            connection.sendall(said)

    return script


def saying(greeting: bytes) -> Callable[[Beside, socket.socket], None]:
    """Says this, and no more."""

    def script(beside: Beside, connection: socket.socket) -> None:
        connection.sendall(greeting)
        time.sleep(PATIENCE_S)

    return script


def turning_away(beside: Beside, connection: socket.socket) -> None:
    """As a server that has too many callers."""
    connection.close()


def breaking_off(beside: Beside, connection: socket.socket) -> None:
    """In the middle of the answer."""
    connection.sendall(GREETING)
    beside.read(connection)
    connection.sendall(answer()[:20])
    connection.shutdown(socket.SHUT_RDWR)


def hanging(beside: Beside, connection: socket.socket) -> None:
    """Takes a call, and answers it when nobody waits any more."""
    connection.sendall(GREETING)
    beside.read(connection)
    time.sleep(1.0)
    connection.sendall(answer("late"))


@contextmanager
def both(folder: Path, *scripts: Callable[[Beside, socket.socket], None]) -> Iterator[tuple[Beside, str]]:
    """A gRPC server whose version is "1", and the socket beside it."""
    with serving(TinyServer(), folder) as url:
        beside = Beside(folder, *scripts)
        try:
            yield beside, url
        finally:
            beside.close()


@pytest.fixture(params=list(OPEN))
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(
    "script",
    [saying(b"RCD2"), saying(b"HTTP/1.1 400"), turning_away, saying(b"")],
    ids=["newer", "stranger", "full", "silent"],
)
def test_where_nobody_lets_the_client_in_it_takes_grpc(
    script: Callable[[Beside, socket.socket], None], way: str, tmp_path: Path
) -> None:
    """A server of another version, or one with too many callers, answers no call at all."""
    with both(tmp_path, script) as (beside, url), OPEN[way](url, retries=0) as client:
        for _ in range(3):
            assert client.server_info().version == "1"
        assert beside.count == 1  # and is not asked before each call


def test_who_does_not_wait_to_be_let_in_speaks_for_itself(way: str, tmp_path: Path) -> None:
    """One caller in a hurry has all others of its client take gRPC for seconds."""
    with both(tmp_path, saying(b""), answering(answer())) as (_, url), OPEN[way](url, retries=0) as client:
        with contextlib.suppress(recollect.DeadlineExceededError):  # gRPC may answer at the last moment
            client.server_info(timeout_s=0.05)
        assert client.server_info().version == "direct"


def test_many_in_a_hurry_find_out_that_nobody_lets_them_in(way: str, tmp_path: Path) -> None:
    """Where a server accepts and says nothing, each call of an impatient client waits for that."""
    with both(tmp_path, saying(b"")) as (beside, url), OPEN[way](url, retries=0) as client:
        for _ in range(30):
            with contextlib.suppress(recollect.DeadlineExceededError):  # on a busy machine
                client.server_info(timeout_s=0.5)
        assert 2 <= beside.count <= 10
        assert client.server_info(timeout_s=PATIENCE_S).version == "1"


def test_waiting_to_be_let_in_is_part_of_a_calls_time(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call takes longer than its caller waits, where a server accepts and says nothing."""
    monkeypatch.setattr(_frames, "GREETING_S", 2 * PATIENCE_S)
    (tmp_path / "s.sock").touch()  # nobody is there for gRPC either
    beside = Beside(tmp_path, saying(b""))
    with OPEN[way](f"unix://{tmp_path}/s.sock", retries=0) as client:
        begun_s = time.monotonic()
        with pytest.raises((recollect.DeadlineExceededError, recollect.UnavailableError)):
            client.server_info(timeout_s=0.1)
        assert time.monotonic() - begun_s < PATIENCE_S
    beside.close()


def test_one_connection_for_one_call_after_the_other(way: str, tmp_path: Path) -> None:
    """Each call connects anew, or takes gRPC though it need not."""
    with both(tmp_path, answering(answer())) as (beside, url), OPEN[way](url, token="rk_1") as client:
        for _ in range(5):
            assert client.server_info(timeout_s=7).version == "direct"
        assert beside.count == 1
    assert {head.credential for head in beside.heads} == {"rk_1"}
    assert all(6 < head.timeout_s <= 7 for head in beside.heads)


def test_the_way_without_grpc_can_be_switched_off(tmp_path: Path) -> None:
    """Whoever has to see all calls in gRPC's own tools cannot."""
    with both(tmp_path, answering(answer())) as (beside, url):
        with recollect.connect(url, direct=False) as client:
            assert client.server_info().version == "1"
        assert beside.count == 0


def test_error_details_arrive(way: str, tmp_path: Path) -> None:
    """Reason, argument and pause would be lost; or a refusal costs a connection."""
    error = pb.ErrorDetail(reason="STALE_ENTRY", argument="ids", error_id="e-7")
    refused = pb.DirectAnswer(status="FAILED_PRECONDITION", message="gone", error=error).SerializeToString()
    with both(tmp_path, answering(frame(refused, b""), answer())) as (beside, url):
        with OPEN[way](url) as client:
            with pytest.raises(recollect.StaleEntryError) as caught:
                client.server_info()
            assert client.server_info().version == "direct"
        assert beside.count == 1
    assert (caught.value.message, caught.value.argument, caught.value.error_id) == ("gone", "ids", "e-7")


def test_a_refusal_before_the_message_is_read_arrives(way: str, tmp_path: Path) -> None:
    """Who sends a large message without a valid key hears that the server is away, and tries again."""
    refused = pb.DirectAnswer(status="UNAUTHENTICATED", message="no valid API key").SerializeToString()

    def refusing(beside: Beside, connection: socket.socket) -> None:
        connection.sendall(GREETING)
        prefix = _exactly(connection, 12)
        _exactly(connection, int.from_bytes(prefix[4:8], "little"))
        time.sleep(0.2)  # the client is stuck: nobody reads on
        connection.sendall(frame(refused, b""))
        connection.close()

    with (
        both(tmp_path, refusing) as (_, url),
        OPEN[way](url, retries=0) as client,
        pytest.raises(recollect.UnauthenticatedError, match="no valid API key"),
    ):
        client.delete_namespace("n" * 3_000_000)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_connection_that_breaks_off(retries: int, way: str, tmp_path: Path) -> None:
    """A call is lost for good where it may be repeated, or is repeated where the caller does not want it."""
    with both(tmp_path, breaking_off, answering(answer())) as (beside, url):
        with OPEN[way](url, retries=retries) as client:
            if retries:
                assert client.server_info().version == "direct"
            else:
                with pytest.raises(recollect.UnavailableError, match=r"s\.sock"):
                    client.server_info()
        assert beside.count == 1 + retries


@pytest.mark.parametrize("pause_s", [0.0, 1.2], ids=["during the next", "before it"])
def test_a_late_answer_is_not_the_next_ones(pause_s: float, way: str, tmp_path: Path) -> None:
    """An answer that comes after its deadline is given to another call: other results, without an error."""
    with both(tmp_path, hanging, answering(answer())) as (beside, url), OPEN[way](url, retries=0) as client:
        with pytest.raises(recollect.DeadlineExceededError, match=r"s\.sock"):
            client.server_info(timeout_s=0.2)
        time.sleep(pause_s)
        assert client.server_info().version == "direct"
        assert beside.count == 2


@pytest.mark.parametrize(
    "sent", [b"x" * 100, frame(b"\xff" * 9, b""), frame(b"", b"\xff" * 9)], ids=["frame", "head", "message"]
)
def test_an_answer_that_is_none(sent: bytes, way: str, tmp_path: Path) -> None:
    """Whatever listens there is believed, or the error is one of a library."""
    with both(tmp_path, answering(sent)) as (_, url), OPEN[way](url, retries=0) as client:
        with pytest.raises(recollect.InternalError) as caught:
            client.server_info()
        assert caught.value.reason == "BAD_REPLY"


def test_an_answer_of_megabytes_in_pieces(way: str, tmp_path: Path) -> None:
    """A large answer is cut off, or what was read too much of it is lost."""
    version = "v" * 3_000_000

    def slowly(beside: Beside, connection: socket.socket) -> None:
        connection.sendall(GREETING)
        for _ in range(2):
            beside.read(connection)
            said = answer(version)
            for first in (0, 5, 13, 70_000):
                connection.sendall(said[first : {0: 5, 5: 13, 13: 70_000}.get(first, len(said))])
                time.sleep(0.02)

    with both(tmp_path, slowly) as (_, url), OPEN[way](url, retries=0) as client:
        for _ in range(2):
            assert client.server_info().version == version


def test_closing_ends_a_call_under_way(tmp_path: Path) -> None:
    """`close` waits for a server that does not answer, or the error says that the server is away."""
    with both(tmp_path, saying(GREETING)) as (beside, url):
        client = recollect.connect(url, timeout_s=PATIENCE_S)
        errors: list[Exception] = []

        def call() -> None:
            try:
                client.server_info()
            except recollect.RecollectError as error:
                errors.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        while beside.count == 0:
            time.sleep(0.01)
        time.sleep(0.2)
        client.close()
        thread.join(PATIENCE_S / 2)
        assert [type(error) for error in errors] == [recollect.ClosedError]


def test_more_calls_at_once_than_connections_take_grpc(tmp_path: Path) -> None:
    """Many threads open a connection each, without end, or wait for one another."""
    with both(tmp_path, hanging) as (beside, url), recollect.connect(url, retries=0) as client:
        versions: list[str] = []
        threads = [
            threading.Thread(target=lambda: versions.append(client.server_info().version)) for _ in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert beside.count == 8
        assert sorted(versions) == ["1"] * 4 + ["late"] * 8


def test_an_interrupt_takes_no_connection_for_good(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever interrupts calls while they connect has all later ones take gRPC."""

    def interrupt(address: str) -> socket.socket:
        raise KeyboardInterrupt

    with both(tmp_path, answering(answer())) as (_, url), recollect.connect(url) as client:
        with monkeypatch.context() as patch:
            patch.setattr(_direct, "dialled", interrupt)
            for _ in range(9):
                with pytest.raises(KeyboardInterrupt):
                    client.server_info()
        assert client.server_info().version == "direct"


def test_a_server_that_was_started_again_is_found(way: str, tmp_path: Path) -> None:
    """The first call after each restart of the server fails, though nothing of it was sent."""
    path = tmp_path / "s.sock"
    with OPEN[way](f"unix://{path}", retries=0) as client:
        for _ in range(2):
            with ServerProcess(socket=path):
                for _ in range(2):
                    assert client.server_info().version == recollect.__version__


def test_a_forked_process_has_connections_of_its_own(tmp_path: Path) -> None:
    """Parent and child write to one connection, and read each other's answers."""
    with both(tmp_path, answering(answer("first")), answering(answer("second"))) as (beside, url):
        with recollect.connect(url) as client:
            assert client.server_info().version == "first"
            child = os.fork()
            if child == 0:
                version = client.server_info().version
                os._exit(7 if version == "second" else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
            assert client.server_info().version == "first"
        assert beside.count == 2
