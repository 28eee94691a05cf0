"""The image, built once for all tests that run it, whichever processes these are in."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from tests.deploy.image import Image, build
from tests.deploy.sandbox import make_root, require_namespaces

IMAGE = TypeAdapter(Image)

HOSTS = ("redis", "server", "prometheus")
"""Of docker-compose.yml; in a sandbox all are the same loopback."""


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The CPU target of the Dockerfile."""
    require_namespaces()
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # then each process has one of its own in a common one
        folder = folder.parent
    with _shared(folder / "image") as image:
        yield image


@contextmanager
def _shared(folder: Path) -> Iterator[Image]:
    """Builds it in a folder, unless another process has; removes it when no process uses it any more."""
    described = folder / "image.json"
    with folder.with_suffix(".changes").open("a") as changes, folder.with_suffix(".uses").open("a") as uses:
        fcntl.flock(changes, fcntl.LOCK_EX)
        fcntl.flock(uses, fcntl.LOCK_SH)
        if not described.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            described.write_bytes(IMAGE.dump_json(build("cpu", folder, names=HOSTS)))
        fcntl.flock(changes, fcntl.LOCK_UN)
        yield IMAGE.validate_json(described.read_bytes())
        fcntl.flock(changes, fcntl.LOCK_EX)
        # pytest would keep hundreds of MB, and those of two runs before. Sandboxes' mounts are theirs alone.
        assert str(folder) not in Path("/proc/self/mounts").read_text()
        try:
            fcntl.flock(uses, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # the last one who uses it removes it
            return
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def bare_root(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with this machine's programs, for services whose images cannot be had here."""
    return make_root(tmp_path_factory.mktemp("bare"), python=image.python, names=HOSTS)
