"""The server's limits: asked for once, and again when a server was started anew with others."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message

import recollect
from recollect import _runner
from recollect.v1 import memory_pb2 as pb
from tests.clients import OPEN
from tests.server_process import ServerProcess
from tests.unit.client.tiny_server import Context, TinyServer, refuse, serving

FEW = {"message_bytes_max": 262144, "tokens_max": 256, "rows_max": 1, "top_k_max": 8}
TWO = ["a", "b"]
ENTRIES = np.random.default_rng(0).standard_normal((2, 2, 4096, 16), dtype=np.float32)
QUERIES = ENTRIES[:, :, :512]


@pytest.fixture(params=list(OPEN))
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _doubt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits may be others from one call to the next: no test waits for a clock."""
    monkeypatch.setattr(_runner, "_LIMITS_BELIEVED_S", 0.0)


def space(client: recollect.Client) -> recollect.Namespace:
    """Of all calls here."""
    return client.create_namespace(
        "n", layers=[0], heads=2, key_dim=16, value_dim=16, capacity=8192, dtype="float32", exist_ok=True
    )


def add(namespace: recollect.Namespace, top_k: int) -> None:
    """More than a message of few bytes holds."""
    assert namespace.add(0, ENTRIES, -ENTRIES, streams=TWO).evicted == 0


def search(namespace: recollect.Namespace, top_k: int) -> None:
    """Scores alone, of many queries."""
    found = namespace.search(0, QUERIES, top_k=top_k, streams=TWO)
    assert (found.scores[..., 0] >= found.scores[..., -1]).all()


def fetch(namespace: recollect.Namespace, top_k: int) -> None:
    """Values, which come in memory that is shared."""
    found = namespace.search(0, QUERIES, top_k=top_k, streams=TWO, include=("keys", "values"))
    assert found.keys is not None
    assert found.values is not None
    np.testing.assert_array_equal(found.keys, -found.values)
    scores = np.einsum("bhtd,bhtkd->bhtk", QUERIES, found.keys)
    np.testing.assert_allclose(scores, found.scores, rtol=1e-3, atol=1e-3)


def attend(namespace: recollect.Namespace, top_k: int) -> None:
    """And the gradient."""
    found = namespace.attend(0, QUERIES, top_k=top_k, streams=TWO)
    assert found.ids is not None
    grad = np.ones_like(QUERIES)
    assert namespace.attend_backward(0, QUERIES, ids=found.ids, streams=TWO, grad_output=grad).any()


def attend_to_one(namespace: recollect.Namespace, top_k: int) -> None:
    """So few queries that they are sent together with others."""
    found = namespace.attend(0, QUERIES[:, :, :1], top_k=top_k, streams=TWO)
    assert np.isfinite(found.lse).all()


KINDS: list[Callable[[recollect.Namespace, int], None]] = [add, search, fetch, attend, attend_to_one]


def test_a_mistake_is_one_though_nobody_answers(way: str) -> None:
    """What the client knows to be wrong is said to be the server's absence, if that hangs."""
    with ServerProcess() as server, OPEN[way](server.unix_url, retries=0) as client:
        found = space(client)
        add(found, 8)
        server.process.send_signal(signal.SIGSTOP)
        try:
            for _ in range(3):
                with pytest.raises(recollect.InvalidArgumentError, match="at most 1024"):
                    found.search(0, QUERIES, top_k=5000, streams=TWO, timeout_s=0.5)
        finally:
            server.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("change", ["fewer", "more"])
def test_a_server_that_starts_again_with_other_limits_is_asked(change: str, way: str, tmp_path: Path) -> None:
    """A client cuts calls for the server that was: all are refused until its program starts again."""
    path = tmp_path / "s.sock"
    before, after = ({}, FEW) if change == "fewer" else (FEW, {})
    with ExitStack() as stack:
        clients = [stack.enter_context(OPEN[way](f"unix://{path}")) for _ in KINDS]
        for limits in (before, after):
            with ServerProcess(socket=path, limits=limits):
                for client, use in zip(clients, KINDS, strict=True):  # each asks by itself, and finds out so
                    use(space(client), 8 if limits or change == "fewer" else 32)


class Server(TinyServer):
    """Answers adds of at most `tokens` tokens, and says so when it is asked.

    Attributes:
        tokens: Of a message.
        added: Those of each add that it answered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens = 4
        self.added: list[int] = []
        self.refusal = pb.ErrorDetail(argument="keys")
        self.code = grpc.StatusCode.INVALID_ARGUMENT
        spec = recollect.NamespaceSpec((0,), 1, 2, 2, 9, "float32").to_message()
        namespace = pb.GetNamespaceResponse(namespace=pb.Namespace(name="n", spec=spec))
        self.handlers["GetNamespace"] = lambda request, context: namespace
        self.handlers["GetServerInfo"] = self.answer_info
        self.handlers["Add"] = self.answer_add

    def answer_info(self, request: bytes, context: Context) -> Message:
        """Its limits."""
        return pb.GetServerInfoResponse(version="1", limits=pb.Limits(tokens_max=self.tokens))

    def answer_add(self, request: bytes, context: Context) -> Message:
        """Within these."""
        tokens = pb.AddRequest.FromString(request).keys.shape[2]
        if tokens > self.tokens:
            return refuse(context, self.code, "not so many", self.refusal)
        self.added.append(tokens)
        return pb.AddResponse(first_ids=[0], next_sequences=[1])

    @property
    def asked(self) -> int:
        """How often for its limits."""
        return self.count("GetServerInfo")


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def namespace(server: Server, way: str, tmp_path: Path) -> Iterator[recollect.Namespace]:
    with serving(server, tmp_path) as url, OPEN[way](url, retries=0) as client:
        yield client.namespace("n")


def add_tokens(namespace: recollect.Namespace, tokens: int) -> None:
    """As many to one row."""
    array = np.ones((1, 1, tokens, 2), np.float32)
    namespace.add(0, array, array, streams=["s"])


def test_limits_are_asked_for_once(
    server: Server, namespace: recollect.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call costs two messages; or each does of a caller that goes on making a mistake."""
    monkeypatch.setattr(_runner, "_LIMITS_BELIEVED_S", 3600.0)
    for _ in range(3):
        add_tokens(namespace, 4)
    server.tokens = 3
    for _ in range(3):
        with pytest.raises(recollect.InvalidArgumentError, match="not so many"):
            add_tokens(namespace, 4)
    assert server.asked == 1


def test_a_mistake_is_told_as_the_server_tells_it(server: Server, namespace: recollect.Namespace) -> None:
    """A wrong call is sent again though nothing has changed, or its error is another one."""
    server.handlers["Add"] = lambda request, context: refuse(context, server.code, "wrong", server.refusal)
    with pytest.raises(recollect.InvalidArgumentError, match="wrong") as caught:
        add_tokens(namespace, 4)
    assert caught.value.argument == "keys"
    assert (server.count("Add"), server.asked) == (1, 2)


@pytest.mark.parametrize(
    ("reason", "asked"),
    [("MESSAGE_TOO_LARGE", 2), ("", 2), ("QUOTA_STORED_BYTES", 1), ("MEMORY_EXHAUSTED", 1)],
)
def test_what_is_used_up_is_no_limit(
    server: Server, namespace: recollect.Namespace, reason: str, asked: int
) -> None:
    """Whoever has no quota left asks for limits too; or nobody does whose message is too large."""
    add_tokens(namespace, 4)
    server.tokens, server.code = 3, grpc.StatusCode.RESOURCE_EXHAUSTED
    server.refusal = pb.ErrorDetail(reason=reason)
    if asked == 2:
        add_tokens(namespace, 4)
        assert server.added == [4, 2, 2]
    else:
        with pytest.raises(recollect.ResourceExhaustedError, match="not so many"):
            add_tokens(namespace, 4)
    assert server.asked == asked


def test_what_was_taken_is_not_sent_again(server: Server, namespace: recollect.Namespace) -> None:
    """A call of several parts that fails in the middle is begun anew: its first entries are added twice."""

    def shrink(request: bytes, context: Context) -> Message:
        answer = server.answer_add(request, context)
        server.tokens = 3
        return answer

    server.handlers["Add"] = shrink
    with pytest.raises(recollect.InvalidArgumentError, match="not so many"):
        add_tokens(namespace, 8)
    assert server.added == [4]
    add_tokens(namespace, 8)
    assert sorted(server.added) == [2, 3, 3, 4]
    assert server.asked == 2


def test_a_server_that_does_not_say_is_asked_by_the_next_call(
    server: Server, namespace: recollect.Namespace
) -> None:
    """The question fails, and its error hides that of the call, or the old limits stay for ever."""
    add_tokens(namespace, 4)
    server.tokens = 3
    away = grpc.StatusCode.UNAVAILABLE
    server.handlers["GetServerInfo"] = lambda request, context: refuse(context, away, "for the test")
    with pytest.raises(recollect.InvalidArgumentError, match="not so many"):
        add_tokens(namespace, 4)
    server.handlers["GetServerInfo"] = server.answer_info
    add_tokens(namespace, 4)
    assert server.added == [4, 2, 2]
