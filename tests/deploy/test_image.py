"""The image made and run as its Dockerfile says, in namespaces in place of an engine.

The base image is this machine's: its /usr, and a Python of the same minor version if there is one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import trustme

from tests.deploy.compose import owned
from tests.deploy.container import Container, run_to_end
from tests.deploy.dockerfile import ROOT
from tests.deploy.image import Image, build
from tests.deploy.sandbox import Network, Setup, require_namespaces

pytestmark = pytest.mark.e2e

CALLER = (Path(__file__).parent / "caller.py").read_text()
DATA = "/var/lib/recollect"
OPEN = {"RECOLLECT_ALLOW_PLAINTEXT_TOKENS": "true"}
SLIM_HAS = frozenset({"libc6", "libgcc-s1", "libstdc++6", "zlib1g"})
"""Debian packages that a slim image has, of those that wheels may need."""


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as made:
        yield made


@pytest.fixture
def data(tmp_path: Path, image: Image) -> Path:
    """A new volume."""
    return owned(tmp_path / "data", image.user)


def _setup(image: Image, data: Path, **env: str) -> Setup:
    """As docker-compose.yml runs it: nothing to be written but the volume and /tmp, and no capability."""
    return Setup(
        image.root,
        image.python,
        {**image.env, "OMP_NUM_THREADS": "1", **env},
        user=image.user,
        workdir=image.workdir,
        read_only=True,
        binds={image.volumes[0]: (data, True)},
        tmpfs={"/tmp": "size=64m,mode=1777"},
    )


def _inside(image: Image, *command: str) -> subprocess.CompletedProcess[str]:
    return run_to_end(Setup(image.root, image.python, image.env, user=image.user, read_only=True), command)


def _said(command: Sequence[str], **env: str) -> str:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **env}
    ).stdout


def test_what_is_installed_is_what_the_constraints_say(image: Image) -> None:
    """The image has other versions than those that were tested, or torch for nothing."""
    checked = _inside(image, "pip", "check")
    assert checked.returncode == 0, checked.stdout
    frozen = _inside(image, "pip", "freeze", "--exclude", "recollect").stdout.split()
    pins = set((ROOT / "constraints.txt").read_text().split("\n"))
    assert not [pin for pin in frozen if pin.lower().replace("_", "-") not in pins]
    names = {pin.partition("==")[0].lower() for pin in frozen}
    assert {"faiss-cpu", "fastapi", "redis", "opentelemetry-sdk"} <= names
    assert not names & {"torch", "faiss-gpu", "pytest"}


def test_no_library_is_needed_that_a_slim_image_lacks(image: Image) -> None:
    """A module cannot be loaded in the real image, though it can on a machine with more packages."""
    if shutil.which("dpkg") is None:
        pytest.skip("no dpkg: only on Debian can it be told which package a library is of")
    tree = image.root / "opt/recollect"
    objects = [str(path) for path in tree.rglob("*.so*")]
    assert objects
    # What wheels bring along lies beside them, and is loaded in an order that ldd does not know.
    beside = ":".join(str(path) for path in tree.rglob("*.libs"))
    linked = _said(["ldd", *objects], LD_LIBRARY_PATH=beside)
    assert "not found" not in linked
    outside = {found for found in re.findall(r"=> (/\S+)", linked) if not found.startswith(str(tree))}
    owners = _said(["dpkg", "--search", *(os.path.realpath(found) for found in outside)])
    packages = {line.partition(":")[0] for line in owners.splitlines()}
    assert packages
    assert packages <= SLIM_HAS


def test_the_kernels_are_in_the_image_and_what_they_are_made_of_is_not(image: Image) -> None:
    """The image's server searches slowly, since nothing was compiled for it, or carries sources along."""
    (engine,) = (image.root / "opt/recollect").rglob("recollect_server/engine")
    for package in (engine, engine.parents[1] / "recollect"):
        assert (package / "_native.so").is_file()
        assert not list(package.rglob("*.cpp"))


def test_the_image_is_for_root_alone_to_change(image: Image) -> None:
    """Who breaks into the server can change its programs, where the root file system is not read-only."""
    tree = (image.root / "opt/recollect").rglob("*")
    assert not [
        path
        for path in tree
        if path.lstat().st_uid != 0 or (not path.is_symlink() and path.stat().st_mode & 0o022)
    ]
    status = (image.root / DATA[1:]).stat()
    assert (f"{status.st_uid}:{status.st_gid}", status.st_mode & 0o777) == (image.user, 0o700)


def test_it_refuses_to_start_open(image: Image, data: Path, network: Network) -> None:
    """A container with no security setting at all serves keys in the clear to whoever reaches it."""
    refused = run_to_end(_setup(image, data), image.command, network=network)
    assert refused.returncode == 2
    assert re.fullmatch(
        r"recollect: \['grpc://0\.0\.0\.0:50051', 'grpc://0\.0\.0\.0:8080'\] can be reached .* "
        r"RECOLLECT_TLS__CERT_FILE .* RECOLLECT_ALLOW_PLAINTEXT_TOKENS=true\n",
        refused.stderr,
    )
    assert not list(data.iterdir())


def test_it_serves_and_ends_with_nothing_to_write_but_its_volume(
    image: Image, data: Path, network: Network
) -> None:
    """The image does not start, is not found healthy, answers nobody, or has to be killed."""
    with Container(_setup(image, data, **OPEN), image.command, network=network) as server:
        server.wait_healthy(image.healthcheck)
        for place in ("/", "/opt/recollect", "/etc", "/usr"):
            assert "Read-only file system" in server.execute(["touch", f"{place}/x"]).stderr
        status = server.execute(["cat", "/proc/1/status"]).stdout
        assert re.search(r"^Name:\trecollect$", status, re.MULTILINE)
        assert re.search(r"^CapEff:\t0{16}$", status, re.MULTILINE)
        token = server.execute(["cat", f"{DATA}/operator.key"]).stdout.strip()
        called = server.execute(["python", "-", token], stdin=CALLER)
        assert called.returncode == 0, called.stderr
        assert json.loads(called.stdout) == {"statuses": [200, 200, 201, 201], "output": [0.25, 0.5]}
        assert server.stop(signal.Signals[image.stop_signal]) == 0
        assert "Traceback" not in server.output
        assert "searching on the CPU with the compiled kernels" in server.output
    with Container(_setup(image, data, **OPEN), image.command, network=network) as again:
        again.wait_healthy(image.healthcheck)
        key = {"RECOLLECT_OPERATOR_KEY": token}
        again.setup = _setup(image, data, **key)
        listed = again.execute(["recollect", "tenants", "list", "--json"])
        assert "acme" in listed.stdout, listed.stderr


def test_the_health_check_tells_ill_from_well(image: Image, data: Path, network: Network) -> None:
    """A server that is not ready, or not there, is found healthy."""
    check = image.healthcheck
    nobody = run_to_end(_setup(image, data), check, network=network)
    assert (nobody.returncode, nobody.stderr[:10]) == (1, "no answer:")
    answers_503 = (
        "import http.server as h\n"
        "class H(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_error(503)\n"
        "h.HTTPServer(('127.0.0.1', 8080), H).serve_forever()\n"
    )
    listening = ["python", "-c", "import socket; socket.create_connection(('127.0.0.1', 8080))"]
    with Container(_setup(image, data), ["python", "-c", answers_503], network=network) as ill:
        ill.wait_healthy(listening)
        found = ill.execute(check)
        assert (found.returncode, found.stderr) == (1, "/readyz answered 503\n")


@pytest.mark.parametrize("mutual", [False, True], ids=["tls", "mutual-tls"])
def test_with_certificates_it_needs_no_other_setting(
    mutual: bool, image: Image, data: Path, network: Network
) -> None:
    """A container with certificates does not start, or its health check cannot speak to it."""
    authority = trustme.CA()
    certificate = authority.issue_cert("server")
    for name, pem in (
        ("ca.pem", authority.cert_pem),
        ("server.key", certificate.private_key_pem),
        ("server.pem", certificate.cert_chain_pems[0]),
    ):
        pem.write_to_path(str(data / name))
        (data / name).chmod(0o644)
    env = {"RECOLLECT_TLS__CERT_FILE": f"{DATA}/server.pem", "RECOLLECT_TLS__KEY_FILE": f"{DATA}/server.key"}
    if mutual:
        env["RECOLLECT_TLS__CLIENT_CA_FILE"] = f"{DATA}/ca.pem"
    with Container(_setup(image, data, **env), image.command, network=network) as server:
        server.wait_healthy(image.healthcheck)
        assert server.stop() == 0


@pytest.mark.slow
def test_the_gpu_image_is_made_and_says_that_it_finds_no_gpu(tmp_path: Path, network: Network) -> None:
    """The GPU target's steps fail, or a container without its GPU serves from the CPU and tells nobody."""
    require_namespaces()
    gpu = build("gpu", tmp_path)
    volume = owned(tmp_path / "data", gpu.user)
    try:
        assert _inside(gpu, "pip", "check").returncode == 0
        refused = run_to_end(_setup(gpu, volume, **OPEN), gpu.command, network=network)
        assert refused.returncode == 2
        assert "device is cuda, but PyTorch or FAISS finds no GPU" in refused.stderr
    finally:
        shutil.rmtree(gpu.root)  # 6 GB
