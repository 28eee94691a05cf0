"""Runs commands as a container would, where there is no container engine: Linux namespaces, nothing else.

A sandbox has a root file system of its own, made of this machine's /usr, a Python and a folder; namespaces
of mounts and processes; and, if it is in a `Network`, no network but a loopback that it shares with that
network's other sandboxes. Users, capabilities, read-only roots, volumes and tmpfs are as the kernel gives
them to any container. Not there: images, bounds on memory and processes (cgroups), seccomp, several hosts.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

TOOLS = ("chroot", "env", "mount", "nsenter", "setpriv", "unshare")
LINKS = ("bin", "sbin", "lib", "lib32", "lib64")
FOLDERS = ("dev/shm", "etc/ssl", "proc", "run", "sys", "tmp", "usr", "var/lib", "var/tmp")
DEVICES = ("null", "random", "urandom", "zero")
PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
NO_PRIVILEGES = ("--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")

LOOPBACK_UP = """\
import fcntl, socket, struct, sys
with socket.socket() as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sh", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
print("up", flush=True)
sys.stdin.read()
"""


def make_root(folder: Path, *, python: Path, names: Sequence[str] = ()) -> Path:
    """A root file system for `Setup`: empty but for what every one has.

    Args:
        folder: To make it in.
        python: The interpreter's prefix on this machine; it is at the same place inside.
        names: Of hosts, all of which are this one.
    """
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    for name in LINKS:
        machines = Path("/", name)
        if machines.is_symlink():
            (folder / name).symlink_to(machines.readlink())
        elif machines.is_dir():
            shutil.copytree(machines, folder / name, symlinks=True)
    (folder / "tmp").chmod(0o1777)
    (folder / "etc/passwd").write_text(PASSWD)
    (folder / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (folder / "etc/hosts").write_text(f"127.0.0.1 localhost {' '.join(names)}\n")
    for name in ("ld.so.cache", "ld.so.conf", "resolv.conf"):
        if Path("/etc", name).is_file():
            shutil.copyfile(Path("/etc", name), folder / "etc" / name)
    (folder / str(python).lstrip("/")).mkdir(parents=True, exist_ok=True)
    return folder


def require_namespaces() -> None:
    """Skips the test, and says why, where namespaces cannot be made."""
    reason = _no_namespaces_because()
    if reason:
        pytest.skip(reason)


@functools.cache
def _no_namespaces_because() -> str:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"no {missing[0]}: the sandbox needs Linux with util-linux and coreutils"
    if os.geteuid() != 0:
        return "not root: the sandbox makes namespaces and switches users"
    tried = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--fork", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces on this machine: {tried.stderr.strip()}" if tried.returncode else ""


class Network:
    """A loopback that nothing outside can reach, and from which nothing leads out."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            ["unshare", "--net", sys.executable, "-c", LOOPBACK_UP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"up\n"

    @property
    def enter(self) -> list[str]:
        """The command that runs another one in it."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holder.communicate()


@dataclass(frozen=True, slots=True)
class Setup:
    """How a container is to run. Paths are those that it sees, unless it says otherwise.

    Attributes:
        root: On this machine; made by `make_root`.
        python: Prefix of an interpreter, on this machine and inside.
        env: The whole environment.
        user: Numbers, as "10001:10001"; "" or "0" is root.
        workdir: Current folder.
        read_only: Whether the root file system is.
        privileged: Whether it keeps root's capabilities.
        binds: Path to a folder or file on this machine, and whether it may be written.
        tmpfs: Path to mount options.
    """

    root: Path
    python: Path
    env: Mapping[str, str]
    user: str = ""
    workdir: str = "/"
    read_only: bool = False
    privileged: bool = False
    binds: Mapping[str, tuple[Path, bool]] = field(default_factory=dict)
    tmpfs: Mapping[str, str] = field(default_factory=dict)

    def inside(self, command: Sequence[str]) -> list[str]:
        """A command with this user and environment, for who stands in the root already."""
        uid, _, gid = (self.user or "0").partition(":")
        drop = () if self.privileged else NO_PRIVILEGES
        user = ["setpriv", f"--reuid={uid}", f"--regid={gid or uid}", "--clear-groups", *drop]
        # The kernel forgets with the user that this is to end with its parent.
        user.append("--pdeathsig=keep")
        variables = [f"{name}={value}" for name, value in self.env.items()]
        return [*user, "env", "-i", "-C", self.workdir, *variables, *command]

    def from_outside(self, command: Sequence[str], network: Network | None) -> list[str]:
        """The same for who stands outside: as process 1 of new namespaces."""
        lines = [
            *self._mounts(),
            f"exec chroot {shlex.quote(str(self.root))} {shlex.join(self.inside(command))}",
        ]
        unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", "\n".join(lines)]
        return [*(network.enter if network else []), *unshare]

    def _mounts(self) -> Iterator[str]:
        root = shlex.quote(str(self.root))
        yield "mount --make-rprivate /"
        yield f"mount --bind {root} {root}"
        for machines in (Path("/usr"), Path("/etc/ssl"), self.python):
            yield from self._bind(str(machines), machines, writable=False)
        for name in DEVICES:
            yield from self._bind(f"/dev/{name}", Path("/dev", name), writable=True)
        yield f"mount -t proc proc {root}/proc"
        yield f"mount -t tmpfs -o size=64m,mode=1777 tmpfs {root}/dev/shm"
        for target, options in self.tmpfs.items():
            place = shlex.quote(self._placed(target, folder=True))
            yield f"mount -t tmpfs -o {shlex.quote(options or 'mode=1777')} tmpfs {place}"
        for target, (source, writable) in self.binds.items():
            yield from self._bind(target, source, writable=writable)
        if self.read_only:
            yield f"mount -o remount,bind,ro {root}"

    def _bind(self, target: str, source: Path, *, writable: bool) -> Iterator[str]:
        place = shlex.quote(self._placed(target, folder=source.is_dir()))
        yield f"mount --bind {shlex.quote(str(source))} {place}"
        if not writable:
            yield f"mount -o remount,bind,ro {place}"

    def _placed(self, target: str, *, folder: bool) -> str:
        # Where something is to be mounted there must be something, as an engine sees to, too.
        place = self.root / target.lstrip("/")
        (place if folder else place.parent).mkdir(parents=True, exist_ok=True)
        if not folder:
            place.touch()
        return str(place)
