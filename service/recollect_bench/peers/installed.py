"""Which peers there are, where their environments lie, and how hard each has to search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HOME = Path(".bench/peers")
"""Made by `make bench-peers`, below the checkout."""


@dataclass(frozen=True, slots=True)
class PeerKind:
    """A peer, as the workloads know it.

    Attributes:
        name: Of its adapter and of its environment.
        packages: What is installed there, with exact versions.
        efforts: Search settings to try in order, until recall is 0.95; one, if it has none or is exact.
        note: What a reader should know about it.
    """

    name: str
    packages: tuple[str, ...]
    efforts: tuple[int, ...] = (0,)
    note: str = ""

    @property
    def python(self) -> Path:
        """Of its environment; need not exist."""
        return HOME / self.name / "bin" / "python"


PEERS = {
    kind.name: kind
    for kind in (
        PeerKind("usearch", ("usearch==2.26.6", "numpy==2.4.6"), efforts=(32, 64, 128, 256, 512)),
    )
}


def reason_absent(name: str) -> str | None:
    """Why a peer cannot take part; None if it can."""
    python = PEERS[name].python
    if python.exists():
        return None
    log = HOME / f"{name}.log"
    said = log.read_text().strip().splitlines() if log.exists() else []
    return f"could not be installed: {said[-1][:200]}" if said else "not installed: run make bench-peers"
