"""The Dockerfile and what is sent to its build, read."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.deploy.dockerfile import DOCKERFILE, ROOT, Instruction, is_sent, lineage, sent_files, stages

TARGETS = ("cpu", "gpu")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _of(target: str, name: str) -> list[Instruction]:
    return [each for stage in lineage(target) for each in stage.instructions if each.name == name]


def _copies_from_here() -> list[Instruction]:
    everything = (each for stage in stages().values() for each in stage.instructions)
    return [each for each in everything if each.name == "COPY" and "from" not in each.flags]


def test_the_linter_has_nothing_to_say() -> None:
    """The Dockerfile has something that hadolint warns of."""
    hadolint = Path(sys.executable).with_name("hadolint")
    linted = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_the_images_are_made_from_a_slim_one_with_its_exact_version(target: str) -> None:
    """Two builds of one commit may be made from different systems, or an image brings a compiler along."""
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+", lineage(target)[0].base)


def test_what_is_compiled_is_compiled_for_the_system_that_it_runs_on() -> None:
    """The kernels are built for another Python or Debian than the images have, and may not load there."""
    bases = {stage.base for stage in stages().values()} - stages().keys()
    assert len(bases) == 2
    assert {base.replace("-slim", "") for base in bases} == {lineage("build-cpu")[0].base}


def test_docker_builds_the_cpu_image_unless_it_is_told_otherwise() -> None:
    """`docker build .` makes another image than the one that compose calls recollect:cpu."""
    assert set(TARGETS) <= stages().keys()
    assert list(stages())[-1] == "cpu"


@pytest.mark.parametrize("target", TARGETS)
def test_containers_are_run_as_somebody_without_privileges(target: str) -> None:
    """The container runs as root, or a policy that forbids root cannot tell that it does not."""
    users = [each.text for each in _of(target, "USER")]
    assert users
    assert all(re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user) for user in users)


@pytest.mark.parametrize("target", TARGETS)
def test_containers_tell_how_they_are(target: str) -> None:
    """An engine cannot tell a server that is ready from one that is not, or stops it by force."""
    (check,) = _of(target, "HEALTHCHECK")
    assert {"interval", "timeout", "start-period", "retries"} <= check.flags.keys()
    assert [each.text for each in _of(target, "STOPSIGNAL")] == ["SIGTERM"]
    # As a JSON list: with a shell in between, the signal would not reach the server.
    assert all(each.text.startswith("[") for name in ("ENTRYPOINT", "CMD") for each in _of(target, name))


@pytest.mark.parametrize("copy", _copies_from_here(), ids=lambda each: each.text)
def test_what_is_copied_is_there_and_is_sent(copy: Instruction) -> None:
    """A build fails, since a file has moved or .dockerignore holds it back."""
    for source in copy.words[:-1]:
        assert (ROOT / source).exists(), source
        assert sent_files(source), f".dockerignore holds {source} back"


@pytest.mark.parametrize(
    "name",
    [
        ".env",
        ".git/config",
        ".venv/pyvenv.cfg",
        "client/recollect/_native.so",
        "service/recollect_server/engine/_native.so",
        "deploy/redis/redis.conf",
        "docs/operations.md",
        "service/recollect_server/__pycache__/cli.cpython-312.pyc",
        "service/recollect_server/old.pyc",
        "recollect.sock",
        "tests/conftest.py",
    ],
)
def test_what_no_image_needs_is_not_sent(name: str) -> None:
    """Secrets, history or somebody's leftovers get into an image, or a change of them spoils its cache."""
    assert not is_sent(name)


def test_nothing_is_sent_but_what_is_copied() -> None:
    """A file that no COPY names is sent with every build."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    copied = {
        name for copy in _copies_from_here() for source in copy.words[:-1] for name in sent_files(source)
    }
    assert not {name for name in listed.stdout.splitlines() if is_sent(name)} - copied


@pytest.mark.parametrize(
    ("stage", "extras"),
    [("build-cpu", {"server", "otel", "cpu"}), ("build-gpu", {"server", "otel", "torch", "gpu"})],
)
def test_each_image_installs_its_own_kind_of_faiss(stage: str, extras: set[str]) -> None:
    """An image lacks a part, or asks for one that pyproject.toml does not have."""
    (install,) = stages()[stage].instructions
    match = re.search(r'"\.\[([\w,]+)\]"', install.text)
    assert match
    assert set(match[1].split(",")) == extras
    assert extras <= PROJECT["optional-dependencies"].keys()


def test_the_image_is_labelled_with_the_version() -> None:
    """An image says that it is of another version than the server in it."""
    (version,) = (each.text for each in _of("cpu", "ARG") if each.text.startswith("VERSION="))
    assert version == f"VERSION={PROJECT['version']}"
