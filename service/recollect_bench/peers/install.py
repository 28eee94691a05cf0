"""Installs the peers, each into an environment of its own: what `make bench-peers` runs."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import venv

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
    folder = HOME / kind.name
    venv.create(folder, with_pip=True)
    pip = [str(kind.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--extra-index-url", extra_index] if extra_index else []
    log = HOME / f"{kind.name}.log"
    with log.open("w") as said:
        for packages in (kind.packages, ("--no-deps", *kind.bare) if kind.bare else ()):
            if (
                packages
                and subprocess.run([*pip, *packages], stdout=said, stderr=said, check=False).returncode
            ):
                shutil.rmtree(folder)
                return log.read_text().strip().splitlines()[-1]
    log.unlink()
    return None


def main() -> None:
    """Installs those named, or all; one that cannot be installed is said, and does not stop the others."""
    parser = argparse.ArgumentParser(description="Install the peers of the benchmark.")
    parser.add_argument("names", nargs="*", choices=[[], *PEERS], help="none: all")
    parser.add_argument("--extra-index-url", default="", help="for CPU builds of torch")
    options = parser.parse_args()
    HOME.mkdir(parents=True, exist_ok=True)
    for name in options.names or PEERS:
        reason = install(PEERS[name], extra_index=options.extra_index_url)
        sys.stdout.write(f"bench-peers: {name}: {reason or 'ready'}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
