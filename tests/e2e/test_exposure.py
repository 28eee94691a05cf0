"""What a server and its clients refuse to be open to, and TLS on both doors of a real process."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import trustme

import recollect
from tests.e2e.shell import PATIENCE_S, Shell, environment, wait_for
from tests.server_process import SCRIPT, ServerProcess

pytestmark = pytest.mark.e2e

HOST = "127.0.0.1"
OPEN = "0.0.0.0"
PLAINTEXT = "RECOLLECT_ALLOW_PLAINTEXT_TOKENS"
LISTEN = ("--listen", f"{HOST}:0", "--admin-listen", f"{HOST}:0")


@pytest.mark.parametrize(
    ("arguments", "settings", "says"),
    [
        (LISTEN, {}, ["no credentials exist", "--data-dir", "RECOLLECT_REGISTRY__URL", "--dev"]),
        (("--dev", "--listen", f"{OPEN}:0"), {}, ["loopback and unix sockets only", f"{OPEN}:0"]),
        (("--dev", "--listen", f"{HOST}:0", "--admin-listen", f"{OPEN}:0"), {}, ["loopback"]),
        (("--dev", "--listen", f"{OPEN}:0"), {PLAINTEXT: "true"}, ["loopback and unix sockets only"]),
        (("--data-dir", "d", "--listen", f"{OPEN}:0"), {}, ["without TLS", PLAINTEXT]),
        (("--data-dir", "d", *LISTEN, "--admin-listen", f"{OPEN}:0"), {}, ["without TLS", PLAINTEXT]),
        (("--data-dir", "d", "--listen", f"{OPEN}:0"), {PLAINTEXT: "false"}, ["without TLS"]),
        (("--dev", "--listen", f"{HOST}:0"), {"RECOLLECT_REGISTRY__URL": "redis://h"}, ["registry.url"]),
        (("--data-dir", "d", *LISTEN), {"RECOLLECT_TLS__CERT_FILE": "c"}, ["tls.key_file"]),
        (("--data-dir", "d", *LISTEN), {"RECOLLECT_ADMIN__OPERATOR_KEY": "rk_short"}, ["operator's key"]),
        (("--data-dir", "d", *LISTEN), {"RECOLLECT_LIMITS__TOP_K_MAX": "4096"}, ["top_k_max"]),
    ],
)
def test_refuses_to_start(
    arguments: tuple[str, ...], settings: Mapping[str, str], says: list[str], tmp_path: Path
) -> None:
    """A server came up open to whoever reaches it, or its refusal does not say what to do."""
    ended = subprocess.run(
        [str(SCRIPT), "serve", "--device", "cpu", *arguments],
        env=environment(settings),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("recollect: ")
    assert all(each in last for each in says), last


def test_plaintext_is_allowed_by_name_only(tmp_path: Path) -> None:
    """A key crosses a network readable without anybody having said so, or cannot where somebody did."""
    with ServerProcess(data_dir=tmp_path, tcp_host=OPEN, environment={PLAINTEXT: "true"}) as server:
        operator = Shell(server)
        operator.done("tenants", "create", "acme")
        token = operator.new_key("acme", "read")
        url = f"grpc://{OPEN}:{server.port}"  # this machine, by an address that is not of loopback
        with pytest.raises(recollect.InvalidArgumentError) as refused:
            recollect.connect(url, token=token)
        assert refused.value.reason == "INSECURE_TOKEN"
        assert token not in str(refused.value)
        with recollect.connect(url, token=token, allow_insecure_token=True) as client:
            assert list(client.list_namespaces()) == []


class Certificates:
    """Files of a throw-away authority for a server with mutual TLS.

    Args:
        folder: Where a server and its clients find them.
    """

    def __init__(self, folder: Path) -> None:
        self.ca, self.cert, self.key = folder / "ca.pem", folder / "server.pem", folder / "server.key"
        self.settings = {
            "RECOLLECT_TLS__CERT_FILE": str(self.cert),
            "RECOLLECT_TLS__KEY_FILE": str(self.key),
            "RECOLLECT_TLS__CLIENT_CA_FILE": str(self.ca),
            "RECOLLECT_TLS__RELOAD_S": "0.1",
        }

    def renew(self) -> recollect.TLS:
        """Replaces all by those of a new authority; what its clients need, in files of their own."""
        authority = trustme.CA()
        server, client = authority.issue_cert(HOST), authority.issue_cert("client@example.org")
        _replace(self.ca, authority.cert_pem)
        _replace(self.key, server.private_key_pem)
        _replace(self.cert, server.cert_chain_pems[0])
        folder = Path(tempfile.mkdtemp(prefix="client-", dir=self.ca.parent))
        ca_file, cert_file, key_file = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
        authority.cert_pem.write_to_path(str(ca_file))
        client.cert_chain_pems[0].write_to_path(str(cert_file))
        client.private_key_pem.write_to_path(str(key_file))
        client.private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
        return recollect.TLS(ca_file, cert_file, key_file)


def _replace(path: Path, blob: trustme.Blob) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(blob.bytes())
    os.replace(fresh, path)


def _reaches(server: ServerProcess, tls: recollect.TLS, token: str) -> bool:
    with recollect.connect(server.tcp_url, token=token, tls=tls, retries=0) as client:
        try:
            return list(client.list_namespaces()) == []
        except recollect.UnavailableError:
            return False


def _operator(server: ServerProcess, tls: recollect.TLS, *, shows: bool = True) -> Shell:
    ca_file = Path(str(tls.ca_file))
    shown = ("--cert-file", str(ca_file.with_name("both.pem"))) if shows else ()
    return Shell(server, options=("--ca-file", str(ca_file), *shown))


def _administers(server: ServerProcess, tls: recollect.TLS, *, shows: bool = True) -> bool:
    return _operator(server, tls, shows=shows).run("tenants", "list").returncode == 0


def _makes_noise(url: str) -> None:
    host, _, port = url.rpartition("//")[2].partition(":")
    for _ in range(20):
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
            connection.sendall(b"no handshake")
            connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(4096):
                    pass


def test_mutual_tls_and_new_certificates_without_a_restart(tmp_path: Path) -> None:
    """A stranger gets in or writes into the log, a renewal needs a restart, or old certificates stay good."""
    files = Certificates(tmp_path)
    first = files.renew()
    with ServerProcess(data_dir=tmp_path / "data", environment=files.settings) as server:
        assert server.tcp_url.startswith("grpcs://")
        assert server.admin_url.startswith("https://")
        operator = _operator(server, first)
        operator.done("tenants", "create", "acme")
        token = operator.new_key("acme", "read")
        assert _reaches(server, first, token)
        assert not _reaches(server, recollect.TLS(ca_file=first.ca_file), token)
        assert not _administers(server, first, shows=False)
        with recollect.connect(server.tcp_url, token=token, tls=first, retries=0) as connected:
            assert list(connected.list_namespaces()) == []
            second = files.renew()
            wait_for(lambda: _reaches(server, second, token), "gRPC takes up the new certificate")
            wait_for(lambda: _administers(server, second), "the admin API takes up the new certificate")
            assert not _reaches(server, first, token)
            assert not _administers(server, first)
            assert list(connected.list_namespaces()) == [], "who was connected stays so"
        for url in (server.tcp_url, server.admin_url):
            _makes_noise(url)
        assert server.is_alive
        server.terminate()
        assert server.wait() == 0
        assert "Traceback" not in server.log
        assert all(json.loads(line)["message"] for line in server.log.splitlines())
