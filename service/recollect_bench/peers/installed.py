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
        bare: What is installed there without what it asks for.
        efforts: Search settings to try in order, until recall is enough; one, if it has none or is exact.
        evicts: Whether it can drop old entries.
        note: What a reader should know about it.
    """

    name: str
    packages: tuple[str, ...]
    bare: tuple[str, ...] = ()
    efforts: tuple[int, ...] = (0,)
    evicts: bool = True
    note: str = ""

    @property
    def python(self) -> Path:
        """Of its environment; need not exist."""
        return HOME / self.name / "bin" / "python"


_HNSW_EFFORTS = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_NUMPY = "numpy==2.4.6"

PEERS = {
    kind.name: kind
    for kind in (
        PeerKind("usearch", ("usearch==2.26.6", _NUMPY), efforts=_HNSW_EFFORTS),
        PeerKind(
            "lucidrains",
            (
                "torch==2.13.0",
                "faiss-cpu==1.15.1",
                "einops-exts==0.0.4",
                "einops==0.8.2",
                "joblib==1.6.0",
                _NUMPY,
            ),
            # It asks for faiss-gpu, which installs the same module as faiss-cpu.
            bare=("memorizing-transformers-pytorch==0.4.1",),
            efforts=(16, *_HNSW_EFFORTS),
            evicts=False,
            note="before its first overflow, so it grows and evicts nothing; no worker processes",
        ),
        PeerKind("hnswlib", ("hnswlib==0.8.0", _NUMPY), efforts=_HNSW_EFFORTS),
        PeerKind("faiss", ("faiss-cpu==1.15.1", _NUMPY), note="IndexFlatIP, exact"),
        PeerKind(
            "qdrant", ("qdrant-edge-py==0.9.0", _NUMPY), efforts=_HNSW_EFFORTS, note="without fetching values"
        ),
        PeerKind(
            "chroma", ("chromadb==1.5.9", _NUMPY), efforts=_HNSW_EFFORTS, note="a server; no values fetched"
        ),
        PeerKind(
            "milvus", ("milvus-lite==3.2.2", "pymilvus==3.0.2", _NUMPY), note="flat; without fetching values"
        ),
        PeerKind("lancedb", ("lancedb==0.40.0", "pyarrow==26.0.1", _NUMPY), note="exact scan"),
    )
}
MAIN = ("usearch", "lucidrains")
"""Those that the goals name; the others take part with `--peers all`."""


def reason_absent(name: str) -> str | None:
    """Why a peer cannot take part; None if it can."""
    python = PEERS[name].python
    if python.exists():
        return None
    log = HOME / f"{name}.log"
    said = log.read_text().strip().splitlines() if log.exists() else []
    return f"could not be installed: {said[-1][:200]}" if said else "not installed: run make bench-peers"
