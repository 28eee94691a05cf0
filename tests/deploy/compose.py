"""The compose files as Compose itself reads them, and their services as sandboxes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from tests.deploy.dockerfile import ROOT
from tests.deploy.sandbox import Setup

COMPOSE = Path(sys.executable).with_name("docker-compose")
FILES = ("docker-compose.yml", "docker-compose.gpu.yml")
OTHERS = (".env.example", "Dockerfile", ".dockerignore")

Service = Mapping[str, object]


def copy_of_project(folder: Path) -> Path:
    """What an operator has before `deploy/make-env`: compose files and deploy/, in a folder of its own."""
    folder.mkdir(exist_ok=True)
    for name in (*FILES, *OTHERS):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "deploy", folder / "deploy")
    return folder


def make_env(project: Path) -> subprocess.CompletedProcess[str]:
    """Runs `deploy/make-env` of a copy."""
    return subprocess.run([project / "deploy/make-env"], capture_output=True, text=True, check=False)


def env_file(path: Path) -> dict[str, str]:
    """The variables of an .env file."""
    lines = (line for line in path.read_text().splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def compose(project: Path, *words: str, files: Sequence[str] = FILES[:1]) -> subprocess.CompletedProcess[str]:
    """Runs Compose on files of a project; for what it does without an engine."""
    chosen = [word for name in files for word in ("--file", name)]
    # A developer's own variables would go before those of .env.
    inherited = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    return subprocess.run(
        [COMPOSE, *chosen, *words], cwd=project, env=inherited, capture_output=True, text=True, check=False
    )


def services(project: Path, *, files: Sequence[str] = FILES[:1]) -> dict[str, Service]:
    """Each service after merging and with its variables filled in."""
    rendered = compose(project, "config", "--format", "json", files=files)
    assert rendered.returncode == 0, rendered.stderr
    found: dict[str, Service] = json.loads(rendered.stdout)["services"]
    return found


def words_of(service: Service, key: str) -> list[str]:
    """A list of words, with `$` as the container gets it."""
    return [str(word).replace("$$", "$") for word in cast("list[object] | None", service.get(key)) or []]


def command_of(service: Service) -> list[str]:
    """What runs, where the image does not say."""
    return [*words_of(service, "entrypoint"), *words_of(service, "command")]


def health_of(service: Service) -> list[str]:
    """The command of the health check."""
    kind, *words = words_of(cast("Service", service["healthcheck"]), "test")
    return words if kind == "CMD" else ["/bin/sh", "-c", *words]


def applied(service: Service, base: Setup, volumes: Path) -> Setup:
    """What a service says about how its container runs, over what its image says.

    Args:
        service: As `services` gives it.
        base: From the image.
        volumes: A folder for the volumes; one that is new belongs to the user, as in the images used here.
    """
    env = {name: str(value) for name, value in cast("Service", service["environment"]).items()}
    setup = replace(
        base,
        env={**base.env, **env},
        user=str(service.get("user", base.user)),
        read_only=bool(service.get("read_only")),
        privileged=service.get("cap_drop") != ["ALL"],
        tmpfs=dict(_tmpfs(entry) for entry in words_of(service, "tmpfs")),
    )
    binds: dict[str, tuple[Path, bool]] = {}
    for volume in cast("list[Service]", service.get("volumes", [])):
        source, target = str(volume["source"]), str(volume["target"])
        if volume["type"] == "volume":
            binds[target] = (owned(volumes / source, setup.user), True)
        else:
            binds[target] = (Path(source), not volume.get("read_only", False))
    return replace(setup, binds=binds)


def owned(folder: Path, user: str) -> Path:
    """A folder, made if it is not there, for one user alone."""
    if not folder.exists():
        folder.mkdir(mode=0o700)
        uid, _, gid = user.partition(":")
        os.chown(folder, int(uid), int(gid))
    return folder


def _tmpfs(entry: str) -> tuple[str, str]:
    target, _, options = entry.partition(":")
    return target, options
