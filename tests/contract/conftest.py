"""Every way to a memory: in this process on either store, over a unix socket and TCP, sync and async."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import grpc
import numpy as np
import pytest

import recollect
from recollect_server import bootstrap
from recollect_server.domain.ports import Device
from recollect_server.embedded import EmbeddedTransport, open_transport
from tests.clients import Raw, blocking_client, raw_embedded, raw_grpc
from tests.contract.memories import Memories
from tests.direct_frames import raw_direct
from tests.server_process import ServerProcess

WAYS = ("embedded", "embedded-async", "unix", "unix-async", "tcp", "tcp-async", "torch")
_numbers = itertools.count()


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    """A server process for all contract tests."""
    with ServerProcess() as running:
        yield running


@contextmanager
def open_way(way: str, server: ServerProcess | None) -> Iterator[recollect.Client]:
    """A client by one of the ways."""
    kind, _, asynchronous = way.partition("-")
    if kind in ("torch", "cuda"):
        # Only while it connects: later servers in this process choose their device by themselves.
        with _torch_device("cpu" if kind == "torch" else "cuda"):
            client = recollect.connect("embedded://")
        with client:
            yield client
        return
    url = "embedded://"
    if server is not None:
        url = server.unix_url if kind == "unix" else server.tcp_url
    with blocking_client(url) if asynchronous else recollect.connect(url) as connected:
        yield connected


@contextmanager
def _torch_device(device: Literal["cpu", "cuda"]) -> Iterator[None]:
    from recollect_server.engine.torch_device import TorchDevice

    def choose(settings: object) -> Device:
        del settings
        return TorchDevice(device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "choose_device", choose)
        yield


@pytest.fixture(scope="session", params=[*WAYS, pytest.param("cuda", marks=pytest.mark.gpu)])
def client(request: pytest.FixtureRequest) -> Iterator[recollect.Client]:
    """The same suite runs with each."""
    way = str(request.param)
    remote = way.startswith(("unix", "tcp"))
    with open_way(way, request.getfixturevalue("server") if remote else None) as connected:
        yield connected


@pytest.fixture
def rng() -> np.random.Generator:
    """Seeded."""
    return np.random.default_rng(0)


@pytest.fixture
def memories(client: recollect.Client, rng: np.random.Generator) -> Iterator[Memories]:
    """Makes namespaces together with their oracles. They go in the end: a server takes so many."""
    made = Memories(client, rng)
    yield made
    for name in made.names:
        client.delete_namespace(name, missing_ok=True)


@pytest.fixture
def name() -> str:
    """Of a namespace that does not exist."""
    return f"contract-{next(_numbers)}"


@pytest.fixture(scope="session")
def embedded_server() -> Iterator[EmbeddedTransport]:
    """A server in this process, past any client."""
    transport = open_transport()
    yield transport
    transport.close()


@pytest.fixture(params=["grpc", "direct", "embedded"])
def raw(request: pytest.FixtureRequest) -> Iterator[Raw]:
    """Sends messages as they are, past the client's own checks."""
    if request.param == "embedded":
        yield raw_embedded(request.getfixturevalue("embedded_server"))
        return
    server: ServerProcess = request.getfixturevalue("server")
    if request.param == "direct":
        yield raw_direct(server.socket)
        assert server.is_alive
        return
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.tcp_url.removeprefix("grpc://"), options=options) as channel:
        yield raw_grpc(channel)
    assert server.is_alive
