"""The image, built once for all tests that run it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.image import Image, build
from tests.deploy.sandbox import make_root, require_namespaces

HOSTS = ("redis", "server", "prometheus")
"""Of docker-compose.yml; in a sandbox all are the same loopback."""


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The CPU target of the Dockerfile."""
    require_namespaces()
    folder = tmp_path_factory.mktemp("image")
    yield build("cpu", folder, names=HOSTS)
    # pytest would keep hundreds of MB, and those of two runs before. Mounts of sandboxes are theirs alone.
    assert str(folder) not in Path("/proc/self/mounts").read_text()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def bare_root(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system with this machine's programs, for services whose images cannot be had here."""
    return make_root(tmp_path_factory.mktemp("bare"), python=image.python, names=HOSTS)
