"""Certificates on both doors: real gRPC and real uvicorn, with certificates of a throw-away authority."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import grpc.aio
import httpx
import pytest
import trustme
import uvicorn

from recollect_server.settings import TlsSettings
from recollect_server.tls import (
    Certificates,
    Files,
    certificates_of,
    grpc_server_credentials,
    uvicorn_ssl_context,
)

HOST = "localhost"
Echo = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
Send = Callable[[dict[str, object]], Awaitable[None]]


class Authority:
    """Signs for servers and clients, and writes what it signed."""

    def __init__(self) -> None:
        self.ca = trustme.CA()
        self.pem = self.ca.cert_pem.bytes()

    def write(self, files: Files) -> None:
        """A new certificate for HOST, each file replaced at once as tools for certificates do."""
        leaf = self.ca.issue_cert(HOST)
        replace(files.cert, b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        replace(files.key, leaf.private_key_pem.bytes())

    def client(self, folder: Path) -> tuple[Path, Path]:
        """A client's certificate and key."""
        leaf = self.ca.issue_cert("client@example.org")
        own = Path(tempfile.mkdtemp(prefix="client-", dir=folder))
        cert, key = own / "cert.pem", own / "key.pem"
        leaf.cert_chain_pems[0].write_to_path(str(cert))
        leaf.private_key_pem.write_to_path(str(key))
        return cert, key


def replace(path: Path, data: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    os.replace(fresh, path)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "cert.pem", tmp_path / "key.pem", None)


@pytest.fixture
def authority(files: Files) -> Authority:
    """The authority that signed what the files hold at first."""
    made = Authority()
    made.write(files)
    return made


@pytest.fixture
def mutual(files: Files, authority: Authority, tmp_path: Path) -> Files:
    """The same files, with an authority for clients."""
    with_clients = files._replace(client_ca=tmp_path / "clients.pem")
    assert with_clients.client_ca is not None
    replace(with_clients.client_ca, authority.pem)
    return with_clients


# ---- the two doors, and how to knock ----


@contextlib.asynccontextmanager
async def grpc_door(certificates: Certificates) -> AsyncIterator[int]:
    async def answer(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return request

    server = grpc.aio.server()
    handler = grpc.method_handlers_generic_handler(
        "test.Echo", {"Echo": grpc.unary_unary_rpc_method_handler(answer)}
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_secure_port(f"{HOST}:0", grpc_server_credentials(certificates))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


@contextlib.asynccontextmanager
async def http_door(certificates: Certificates) -> AsyncIterator[int]:
    async def app(scope: dict[str, object], receive: object, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"here"})

    context = uvicorn_ssl_context(certificates)
    config = uvicorn.Config(
        app, lifespan="off", log_config=None, ssl_context_factory=lambda config, default: context
    )
    server = uvicorn.Server(config)
    with socket.create_server((HOST, 0)) as listening:
        serving = asyncio.create_task(server.serve([listening]))
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


async def grpc_call(port: int, trusted: bytes, client: tuple[Path, Path] | None) -> None:
    credentials = grpc.ssl_channel_credentials(
        trusted,
        client[1].read_bytes() if client else None,
        client[0].read_bytes() if client else None,
    )
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"{HOST}:{port}", credentials, options=options) as channel:
        try:
            echo: Echo = channel.unary_unary("/test.Echo/Echo")
            assert await echo(b"you", timeout=30) == b"you"
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            raise ConnectionRefusedError(error.details()) from None


async def http_call(port: int, trusted: bytes, client: tuple[Path, Path] | None) -> None:
    context = ssl.create_default_context(cadata=trusted.decode())
    if client:
        context.load_cert_chain(*client)
    async with httpx.AsyncClient(verify=context, trust_env=False) as session:
        try:
            assert (await session.get(f"https://{HOST}:{port}/")).text == "here"
        except httpx.TransportError as error:
            raise ConnectionRefusedError(f"{error}") from None


Call = Callable[[int, bytes, tuple[Path, Path] | None], Awaitable[None]]
Door = Callable[[Certificates], contextlib.AbstractAsyncContextManager[int]]
DOORS = pytest.mark.parametrize(
    ("door", "call"), [(grpc_door, grpc_call), (http_door, http_call)], ids=["grpc", "https"]
)


async def refused(call: Call, port: int, trusted: bytes, client: tuple[Path, Path] | None = None) -> None:
    with pytest.raises(ConnectionRefusedError):
        await call(port, trusted, client)


@DOORS
async def test_a_new_certificate_is_taken_up(
    door: Door, call: Call, files: Files, authority: Authority
) -> None:
    """Each renewal would need a restart, and a forgotten one would end the service."""
    async with door(Certificates(files, reload_s=0)) as port:
        await call(port, authority.pem, None)
        other = Authority()
        await refused(call, port, other.pem)
        for _ in range(2):
            other.write(files)
            await call(port, other.pem, None)
        await refused(call, port, authority.pem)


@DOORS
async def test_connections_outlive_a_new_certificate(
    door: Door, call: Call, files: Files, authority: Authority
) -> None:
    """A renewal would cut the calls of everybody who is connected."""
    async with door(Certificates(files, reload_s=0)) as port:
        credentials = grpc.ssl_channel_credentials(authority.pem)
        if door is grpc_door:
            async with grpc.aio.secure_channel(f"{HOST}:{port}", credentials) as channel:
                echo: Echo = channel.unary_unary("/test.Echo/Echo")
                await echo(b"before", timeout=30)
                Authority().write(files)
                await refused(call, port, authority.pem)
                assert await echo(b"after", timeout=30) == b"after"
        else:
            context = ssl.create_default_context(cadata=authority.pem.decode())
            async with httpx.AsyncClient(verify=context, trust_env=False) as session:
                await session.get(f"https://{HOST}:{port}/")
                Authority().write(files)
                await refused(call, port, authority.pem)
                assert (await session.get(f"https://{HOST}:{port}/")).text == "here"


@DOORS
@pytest.mark.parametrize("damage", ["half", "another key", "gone", "empty"])
async def test_a_bad_new_certificate_is_not_taken_up(
    door: Door, call: Call, files: Files, authority: Authority, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is being written, or a slip of an operator, would cut everybody off."""
    async with door(Certificates(files, reload_s=0)) as port:
        whole = files.cert.read_bytes()
        if damage == "half":
            replace(files.cert, whole[: len(whole) // 2])
        elif damage == "another key":
            replace(files.key, trustme.CA().issue_cert(HOST).private_key_pem.bytes())
        elif damage == "empty":
            files.cert.write_bytes(b"")
        else:
            files.cert.unlink()
        with caplog.at_level(logging.ERROR, logger="recollect_server.tls"):
            for _ in range(3):
                await call(port, authority.pem, None)
        assert len(caplog.records) == 1, "told once"
        other = Authority()
        other.write(files)
        await call(port, other.pem, None)


@DOORS
async def test_mutual_tls_refuses_strangers(
    door: Door, call: Call, mutual: Files, authority: Authority, tmp_path: Path
) -> None:
    """Whoever reaches the port could talk to a server that was told to know its clients."""
    async with door(Certificates(mutual, reload_s=0)) as port:
        await call(port, authority.pem, authority.client(tmp_path))
        await refused(call, port, authority.pem)
        await refused(call, port, authority.pem, Authority().client(tmp_path))


@DOORS
async def test_a_client_authority_can_be_taken_out(
    door: Door, call: Call, mutual: Files, authority: Authority, tmp_path: Path
) -> None:
    """Clients of an authority that is trusted no more would still come in."""
    old, new = authority.client(tmp_path), Authority()
    async with door(Certificates(mutual, reload_s=0)) as port:
        await call(port, authority.pem, old)
        assert mutual.client_ca is not None
        replace(mutual.client_ca, new.pem)
        await refused(call, port, authority.pem, old)
        await call(port, authority.pem, new.client(tmp_path))


async def test_no_session_outlives_a_client_authority(
    mutual: Files, authority: Authority, tmp_path: Path
) -> None:
    """A client would resume its session, and so skip the check of its certificate."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.load_cert_chain(*authority.client(tmp_path))

    def visit(port: int) -> ssl.SSLSession | None:
        with (
            socket.create_connection((HOST, port)) as plain,
            context.wrap_socket(plain, server_hostname=HOST) as connection,
        ):
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert connection.recv(4096)
            return connection.session

    async with http_door(Certificates(mutual, reload_s=0)) as port:
        session = await asyncio.to_thread(visit, port)
        assert session is None or not session.has_ticket
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(visit, port)


@DOORS
async def test_old_tls_is_refused(door: Door, call: Call, files: Files, authority: Authority) -> None:
    """Versions of TLS that are broken would be spoken."""
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2", "http/1.1"])

    def version_of(port: int) -> str | None:
        with (
            socket.create_connection((HOST, port)) as plain,
            context.wrap_socket(plain, server_hostname=HOST) as connection,
        ):
            return connection.version()

    async with door(Certificates(files, reload_s=0)) as port:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert await asyncio.to_thread(version_of, port) == "TLSv1.2"
        with pytest.deprecated_call():
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises((ssl.SSLError, ConnectionError)):  # an alert or a reset, as it comes
            await asyncio.to_thread(version_of, port)


def test_files_are_looked_at_now_and_then(files: Files, authority: Authority) -> None:
    """Each connection would cost a look at the disk, or changes would wait for ever."""
    now_s = [0.0]
    certificates = Certificates(files, reload_s=5, monotonic=lambda: now_s[0])
    first = certificates.current()
    authority.write(files)
    now_s[0] = 4.9
    assert certificates.current() is first
    now_s[0] = 5.0
    second = certificates.current()
    assert second is not first
    now_s[0] = 50.0
    assert certificates.current() is second, "nothing changed"


def test_without_settings_there_is_no_tls() -> None:
    """A server without certificates would not start, or claim to be encrypted."""
    assert certificates_of(TlsSettings()) is None


def test_the_settings_make_certificates(mutual: Files, authority: Authority) -> None:
    """Settings would not reach the server."""
    made = certificates_of(
        TlsSettings(cert_file=mutual.cert, key_file=mutual.key, client_ca_file=mutual.client_ca)
    )
    assert made is not None
    assert made.asks_clients


@pytest.mark.parametrize("given", ["cert_file", "key_file", "client_ca_file"])
def test_half_of_the_settings_are_refused(given: str, files: Files) -> None:
    """A server would run without the encryption that its operator asked for."""
    with pytest.raises(ValueError, match=rf"tls\.{given} needs tls\.(cert|key)_file"):
        certificates_of(TlsSettings.model_validate({given: files.cert}))


@pytest.mark.parametrize("setting", ["cert_file", "key_file", "client_ca_file"])
@pytest.mark.parametrize("damage", ["gone", "no PEM"])
def test_a_bad_file_is_named_at_the_start(mutual: Files, setting: str, damage: str) -> None:
    """The operator would have to guess which of three files is wrong, or the server would run without it."""
    path = mutual[["cert_file", "key_file", "client_ca_file"].index(setting)]
    assert path is not None
    path.unlink() if damage == "gone" else path.write_text("no certificate")
    with pytest.raises(ValueError, match=rf"tls\.{setting}") as caught:
        Certificates(mutual, reload_s=1)
    assert str(path) in str(caught.value)


def test_a_key_of_another_certificate_is_refused(files: Files, authority: Authority) -> None:
    """The server would start, and every handshake would fail."""
    replace(files.key, authority.ca.issue_cert(HOST).private_key_pem.bytes())
    with pytest.raises(ValueError, match=r"tls\.cert_file .* tls\.key_file"):
        Certificates(files, reload_s=1)
