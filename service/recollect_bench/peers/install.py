"""Installs the peers, each into an environment of its own: what `make bench-peers` runs."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import venv
from typing import TextIO

from recollect_bench.peers.installed import HOME, PEERS, PeerKind


def install(kind: PeerKind, *, extra_index: str = "") -> str | None:
    """Makes a peer's environment, if it is not there.

    Args:
        kind: Which.
        extra_index: One more package index, for CPU builds of torch.

    Returns:
        None, or why it could not be installed; the whole log stays beside the environment.
    """
    if kind.python.exists():
        return None
    folder, log = HOME / kind.name, HOME / f"{kind.name}.log"
    try:
        venv.create(folder, with_pip=True, symlinks=True)
        with log.open("w") as said:
            _pip(kind, ["--extra-index-url", extra_index] if extra_index else [], said)
    except BaseException as error:
        # Half an environment would be taken for a whole one.
        shutil.rmtree(folder, ignore_errors=True)
        if not isinstance(error, subprocess.CalledProcessError):
            raise
        return log.read_text().strip().splitlines()[-1]
    log.unlink()
    return None


def _pip(kind: PeerKind, options: list[str], said: TextIO) -> None:
    for packages in (kind.packages, ("--no-deps", *kind.bare)):
        command = [
            str(kind.python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            *options,
        ]
        if kind.bare or packages is kind.packages:
            subprocess.run([*command, *packages], stdout=said, stderr=said, check=True)


def main() -> None:
    """Installs those named, or all; one that cannot be installed is said, and does not stop the others."""
    parser = argparse.ArgumentParser(description="Install the peers of the benchmark.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PEERS)}; none: all")
    parser.add_argument("--extra-index-url", default="", help="for CPU builds of torch")
    options = parser.parse_args()
    if unknown := set(options.names) - set(PEERS):
        parser.error(f"there is no peer {', '.join(sorted(unknown))}")
    HOME.mkdir(parents=True, exist_ok=True)
    for name in options.names or PEERS:
        reason = install(PEERS[name], extra_index=options.extra_index_url)
        sys.stdout.write(f"bench-peers: {name}: {reason or 'ready'}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
