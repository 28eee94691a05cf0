"""grpcs://: who is trusted, what is shown, and what is refused before anything is dialled."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, cast

import grpc
import pytest
import trustme

import recollect
from recollect import TLS, InvalidArgumentError
from tests.unit.client.tiny_server import TinyServer, serving


class Papers(NamedTuple):
    """Of one authority: itself, and a client's certificate."""

    ca: trustme.CA
    ca_file: Path
    cert_file: Path
    key_file: Path

    @property
    def tls(self) -> TLS:
        return TLS(ca_file=self.ca_file, cert_file=self.cert_file, key_file=str(self.key_file))


def papers(folder: Path) -> Papers:
    folder.mkdir()
    made = Papers(trustme.CA(), folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    made.ca.cert_pem.write_to_path(str(made.ca_file))
    leaf = made.ca.issue_cert("client@example.org")
    leaf.cert_chain_pems[0].write_to_path(str(made.cert_file))
    leaf.private_key_pem.write_to_path(str(made.key_file))
    return made


@pytest.fixture
def ours(tmp_path: Path) -> Papers:
    return papers(tmp_path / "ours")


@pytest.fixture
def server() -> TinyServer:
    return TinyServer()


def credentials(ours: Papers, *, mutual: bool) -> grpc.ServerCredentials:
    leaf = ours.ca.issue_cert("localhost")
    pair = (leaf.private_key_pem.bytes(), leaf.cert_chain_pems[0].bytes())
    return grpc.ssl_server_credentials([pair], ours.ca.cert_pem.bytes() if mutual else None, mutual)


@pytest.fixture
def url(server: TinyServer, ours: Papers, tmp_path: Path) -> Iterator[str]:
    with serving(server, tmp_path, credentials(ours, mutual=False)) as where:
        yield where


@pytest.fixture
def mutual_url(server: TinyServer, ours: Papers, tmp_path: Path) -> Iterator[str]:
    with serving(server, tmp_path, credentials(ours, mutual=True)) as where:
        yield where


async def call_async(url: str, tls: TLS | None) -> str:
    async with recollect.connect_async(url, tls=tls, retries=0, token="s3cret") as client:
        return (await client.server_info()).version


def call(url: str, tls: TLS | None) -> str:
    with recollect.connect(url, tls=tls, retries=0, token="s3cret") as client:
        return client.server_info().version


def test_calls_and_tokens_travel_encrypted(server: TinyServer, url: str, ours: Papers) -> None:
    """grpcs:// would not connect, or lose the token."""
    tls = TLS(ca_file=ours.ca_file)
    assert call(url, tls) == asyncio.run(call_async(url, tls)) == "1"
    assert [sent["authorization"] for sent in server.metadata] == ["Bearer s3cret"] * 2


def test_a_server_that_nobody_vouches_for_gets_nothing(server: TinyServer, url: str, tmp_path: Path) -> None:
    """Whoever sits between client and server would read the token."""
    for tls in (None, TLS(), TLS(ca_file=papers(tmp_path / "theirs").ca_file)):
        with pytest.raises(recollect.UnavailableError):
            call(url, tls)
        with pytest.raises(recollect.UnavailableError):
            asyncio.run(call_async(url, tls))
    assert not server.metadata


def test_a_server_of_another_name_gets_nothing(server: TinyServer, url: str, ours: Papers) -> None:
    """Any holder of any certificate of the authority could pose as the memory server."""
    with pytest.raises(recollect.UnavailableError):
        call(url.replace("localhost", "127.0.0.1"), TLS(ca_file=ours.ca_file))
    assert not server.metadata


def test_a_client_shows_its_certificate(mutual_url: str, ours: Papers, tmp_path: Path) -> None:
    """Servers that ask for certificates of clients could not be used."""
    assert call(mutual_url, ours.tls) == asyncio.run(call_async(mutual_url, ours.tls)) == "1"
    theirs = papers(tmp_path / "theirs")
    for tls in (TLS(ca_file=ours.ca_file), TLS(ours.ca_file, theirs.cert_file, theirs.key_file)):
        with pytest.raises(recollect.UnavailableError):
            call(mutual_url, tls)


@pytest.mark.parametrize("url", ["grpc://127.0.0.1:1", "unix:///run/s.sock", "embedded://"])
def test_tls_needs_an_encrypted_url(url: str) -> None:
    """A user would believe that a connection is encrypted which is not."""
    for connect in (recollect.connect, recollect.connect_async):
        with pytest.raises(InvalidArgumentError, match="grpcs://") as caught:
            connect(url, tls=TLS())
        assert caught.value.argument == "tls"


def test_tls_is_of_its_own_type() -> None:
    """A path or True in its place would fail far from the mistake."""
    for wrong in (True, "ca.pem"):
        with pytest.raises(InvalidArgumentError, match=r"recollect\.TLS"):
            recollect.connect("grpcs://memory:1", tls=cast("TLS", wrong))


@pytest.mark.parametrize("field", ["ca_file", "cert_file", "key_file"])
@pytest.mark.parametrize("damage", ["gone", "folder", "no PEM"])
def test_bad_files_are_named(ours: Papers, field: str, damage: str) -> None:
    """A wrong path would show as a server that does not answer."""
    path: Path = getattr(ours, field)
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "no PEM":
        path.write_text("nothing")
    for connect in (recollect.connect, recollect.connect_async):
        with pytest.raises(InvalidArgumentError, match=rf"tls\.{field}") as caught:
            connect("grpcs://memory:1", tls=ours.tls)
        assert caught.value.argument == "tls"
        assert str(path) in str(caught.value)


def test_certificate_and_key_belong_together(ours: Papers, tmp_path: Path) -> None:
    """Half a pair, or two halves of different pairs, would fail at every call."""
    theirs = papers(tmp_path / "theirs")
    for tls, words in (
        (TLS(cert_file=ours.cert_file), "cert_file without key_file"),
        (TLS(key_file=ours.key_file), "key_file without cert_file"),
        (TLS(cert_file=ours.cert_file, key_file=theirs.key_file), "and its key"),
    ):
        with pytest.raises(InvalidArgumentError, match=words):
            recollect.connect("grpcs://memory:1", tls=tls)
