"""Makes the server's image as the Dockerfile says, without an engine: its COPYs copied, its RUNs run."""

from __future__ import annotations

import ast
import os
import shutil
import string
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy.container import run_to_end
from tests.deploy.dockerfile import ROOT, Instruction, lineage, sent_files
from tests.deploy.sandbox import Setup, make_root

BUILD_S = 600.0
SILENT = frozenset({"ARG", "EXPOSE", "LABEL"})
"""Instructions that change nothing for a process; no ARG is used but by LABEL."""
CARRIED = ("CERT", "PROXY", "OPENBLAS_")
"""Parts of the names of variables that say how the index is reached, or what the processor needs."""


@dataclass
class Image:
    """What comes out.

    Attributes:
        root: Its file system, a folder of this machine.
        python: Prefix of the interpreter that stands for the base image's.
        env: Variables.
        user: Numbers.
        workdir: Current folder.
        entrypoint: First words of what is run.
        cmd: The others.
        healthcheck: The command.
        volumes: Paths that stay writable.
        stop_signal: Its name.
    """

    root: Path
    python: Path
    env: dict[str, str] = field(default_factory=dict)
    user: str = ""
    workdir: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)
    stop_signal: str = "SIGTERM"

    @property
    def command(self) -> list[str]:
        """What `docker run` without further words runs."""
        return [*self.entrypoint, *self.cmd]


def base_python(image: str) -> Path:
    """The prefix of a Python of the version that the image's name tells, or else of this one."""
    minor = ".".join(image.removeprefix("python:").split(".")[:2])
    siblings = sorted(Path(sys.base_prefix).parent.glob(f"*{minor}.*"))
    candidates = [*(folder / "bin" / f"python{minor}" for folder in siblings), Path(f"python{minor}")]
    for candidate in candidates:
        if shutil.which(candidate) is not None:
            asked = subprocess.run(
                [candidate, "-c", "import ensurepip, sys; print(sys.base_prefix)"],
                capture_output=True,
                text=True,
                check=False,
            )
            if asked.returncode == 0:
                return Path(asked.stdout.strip())
    return Path(sys.base_prefix)


def build(target: str, folder: Path, *, names: Sequence[str] = ()) -> Image:
    """Builds a target and the stages it needs.

    Args:
        target: A stage's name.
        folder: To build in; it is filled with root file systems.
        names: Of hosts that are to lead to the container itself.
    """
    line = lineage(target)
    python = base_python(line[0].base)
    image = Image(make_root(folder / target, python=python, names=names), python)
    # What the base image calls python, some systems call python3 only.
    called = image.root / "base/bin/python"
    called.parent.mkdir(parents=True)
    called.symlink_to(python / "bin/python3")
    image.env["PATH"] = f"{python}/bin:/base/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    for stage in line:
        for instruction in stage.instructions:
            _apply(image, instruction, folder)
    return image


def _apply(image: Image, instruction: Instruction, folder: Path) -> None:
    name, words = instruction.name, instruction.words if instruction.name not in {"RUN", "LABEL"} else []
    match name:
        case "RUN":
            _run(image, instruction.command)
        case "COPY":
            _copy(image, instruction, folder)
        case "ENV":
            image.env |= _variables(words, image.env)
        case "WORKDIR":
            image.workdir = words[0]
            (image.root / image.workdir.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "USER":
            image.user = words[0]
        case "VOLUME":
            image.volumes += words
        case "STOPSIGNAL":
            image.stop_signal = words[0]
        case "HEALTHCHECK":
            image.healthcheck = Instruction("CMD", {}, instruction.text.removeprefix("CMD").strip()).command
        case "ENTRYPOINT":
            image.entrypoint = instruction.command
        case "CMD":
            image.cmd = instruction.command
        case _:
            assert name in SILENT, f"the Dockerfile has {name}: teach it to tests/deploy/image.py"


def _variables(words: Sequence[str], known: dict[str, str]) -> dict[str, str]:
    pairs = (word.partition("=") for word in words)
    return {name: string.Template(value).safe_substitute(known) for name, _, value in pairs}


def _run(image: Image, command: list[str]) -> None:
    # Variables of the Dockerfile go before those of this machine, as in a real build.
    env = {"HOME": "/root", **_index_settings(), **image.env}
    setup = Setup(image.root, image.python, env, user=image.user, workdir=image.workdir, privileged=True)
    ran = run_to_end(setup, command, timeout_s=BUILD_S)
    assert ran.returncode == 0, f"RUN {command} failed:\n{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}"


def _index_settings() -> dict[str, str]:
    """How pip reaches its index on this machine, as variables: files of its settings are not inside."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings: dict[str, str] = {}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        if not key.startswith(":env:"):
            settings[f"PIP_{key.rpartition('.')[2].upper().replace('-', '_')}"] = str(ast.literal_eval(value))
    for name, value in os.environ.items():
        if name.startswith("PIP_") or any(part in name.upper() for part in CARRIED):
            settings[name] = value
    return settings


def _copy(image: Image, instruction: Instruction, folder: Path) -> None:
    *sources, target = instruction.words
    place = image.root / image.workdir.lstrip("/") / target if target[0] != "/" else image.root / target[1:]
    if stage := instruction.flags.get("from"):
        built = folder / stage
        if not built.exists():
            build(stage, folder)
        for source in sources:
            # Moved, to spare hundreds of MB: no other stage wants it.
            place.parent.mkdir(parents=True, exist_ok=True)
            (built / source.lstrip("/")).rename(place)
        return
    for source in sources:
        for name in sent_files(source):
            below = Path(name).relative_to(source)
            into = place / below if below.parts else (place / source if target.endswith("/") else place)
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, into)
