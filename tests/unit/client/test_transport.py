"""Transports: what travels beside a message, and what happens when nobody answers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message

import recollect
from recollect import _embedded_transport
from recollect.errors import MissingExtraError
from recollect.v1 import memory_pb2 as pb
from tests.clients import OPEN
from tests.server_process import ServerProcess
from tests.unit.client.tiny_server import TinyServer, refuse, serving


def test_token_travels_as_a_bearer_header(tmp_path: Path) -> None:
    """The server could not tell who calls."""
    server = TinyServer()

    async def call(url: str) -> None:
        async with recollect.connect_async(url, token="s3cret") as client:
            await client.server_info()

    with serving(server, tmp_path) as url:
        with recollect.connect(url, token="s3cret") as client:
            client.server_info()
            assert "s3cret" not in repr(client)
        asyncio.run(call(url))
        with recollect.connect(url) as client:
            client.server_info()
    assert [sent.get("authorization") for sent in server.metadata] == ["Bearer s3cret"] * 2 + [None]


def test_error_details_arrive(tmp_path: Path) -> None:
    """Reason, argument and error id would be lost between server and user."""

    def fail(request: bytes, context: grpc.ServicerContext) -> Message:
        detail = pb.ErrorDetail(reason="STALE_ENTRY", argument="ids", error_id="e-7")
        return refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "gone", detail)

    server = TinyServer()
    server.handlers["GetServerInfo"] = fail

    async def call(url: str) -> None:
        async with recollect.connect_async(url) as client:
            await client.server_info()

    with serving(server, tmp_path) as url:
        with recollect.connect(url) as client, pytest.raises(recollect.StaleEntryError) as caught:
            client.server_info()
        with pytest.raises(recollect.StaleEntryError) as caught_async:
            asyncio.run(call(url))
    for error in (caught.value, caught_async.value):
        assert (error.message, error.argument, error.error_id) == ("gone", "ids", "e-7")


def test_nobody_there(tmp_path: Path) -> None:
    """A wrong address would show as gRPC's own error, which callers never import."""
    url = f"unix://{tmp_path}/none.sock"
    with (
        recollect.connect(url, retries=0) as client,
        pytest.raises(recollect.UnavailableError, match=r"none\.sock"),
    ):
        client.server_info()


def test_a_server_that_comes_back_is_found(tmp_path: Path) -> None:
    """A client would have to be made anew after each restart of the server."""
    with recollect.connect(f"unix://{tmp_path}/s.sock", retries=20) as client:
        for _ in range(2):
            with serving(TinyServer(), tmp_path):
                assert client.server_info().version == "1"


@pytest.mark.parametrize("way", list(OPEN))
def test_who_waits_for_ages_waits_without_end(way: str) -> None:
    """A timeout that the system's clocks do not reach fails at once, and not for what it is."""
    with ServerProcess() as server:
        for url in (server.unix_url, server.tcp_url, "embedded://"):
            with OPEN[way](url, retries=0) as client:
                for timeout_s in (1e8, 1e10, 1e300):
                    assert client.server_info(timeout_s=timeout_s).version == recollect.__version__


def test_unknown_method_names_the_likely_cause(tmp_path: Path) -> None:
    """An old server would look like a defect of the new client."""
    with (
        serving(TinyServer(), tmp_path) as url,
        recollect.connect(url) as client,
        pytest.raises(recollect.InternalError, match="older"),
    ):
        client.namespace("n")


@pytest.mark.parametrize("url", ["grpc://127.0.0.1:1", "unix:///nowhere.sock", "embedded://"])
def test_use_after_close(url: str) -> None:
    """A closed client would hang, or open a connection that nobody closes."""
    client = recollect.connect(url)
    client.close()
    client.close()
    with pytest.raises(recollect.ClosedError, match="closed"):
        client.server_info()

    async def call() -> None:
        async_client = recollect.connect_async(url)
        async with async_client:
            pass
        await async_client.close()
        with pytest.raises(recollect.ClosedError, match="closed"):
            await async_client.server_info()

    asyncio.run(call())


def test_embedded_without_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base install would answer embedded:// with a riddle."""
    monkeypatch.setattr("recollect._extensions.entry_points", lambda group: ())
    with pytest.raises(MissingExtraError, match=r"pip install 'recollect\[server\]'"):
        recollect.connect("embedded://")


def test_embedded_answer_of_another_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of another version in this process would fail far from the cause."""

    class Odd:
        def call(
            self, method: str, request: Message, *, timeout_s: float | None, credential: str | None
        ) -> object:
            class Reply:
                code, message, response, detail = "OK", "", pb.AddResponse(), None

            return Reply()

        def close(self) -> None:
            pass

    monkeypatch.setattr(_embedded_transport, "load_extension", lambda *names, **options: Odd)
    with (
        recollect.connect("embedded://") as client,
        pytest.raises(recollect.InternalError, match="AddResponse"),
    ):
        client.server_info()
