"""Keys of several kinds in an inverted file, and what share of the true neighbours a search there finds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recollect_server.domain.arrays import DenseArray
from recollect_server.domain.steps import run_through
from recollect_server.engine import upkeep
from recollect_server.engine.ivf import InvertedFile


def spread(kind: str, rng: np.random.Generator, count: int, dim: int) -> NDArray[np.float32]:
    """Keys of one kind, of length 1."""
    made = rng.standard_normal((count, dim))
    if kind == "subspace":
        basis = np.random.default_rng(5).standard_normal((16, dim)) / 4
        made = rng.standard_normal((count, 16)) @ basis + 0.1 * made
    elif kind == "anisotropic":
        made *= np.arange(1, dim + 1) ** -0.5
    elif kind == "mixture":
        made = np.random.default_rng(6).standard_normal((100, dim))[rng.integers(0, 100, count)] + 0.3 * made
    keys: NDArray[np.float32] = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
    return keys


def filed(keys: DenseArray, *, lists: int = 60) -> InvertedFile:
    """An inverted file with all keys in lists."""
    wide = keys.float32()
    centroids = wide[np.random.default_rng(7).choice(len(wide), lists, replace=False)].copy()
    nearest = (wide @ centroids.T - 0.5 * (centroids**2).sum(axis=1)).argmax(axis=1)
    away = np.linalg.norm(wide - centroids[nearest], axis=1)
    radii = np.array(
        [away[nearest == each].mean() if (nearest == each).any() else 1 for each in range(lists)]
    )
    file = InvertedFile(centroids, radii.astype(np.float32), len(wide), entries=len(wide))
    file.pending.add(slice(0, len(wide)))
    while len(file.pending):
        file.assign(keys.raw, keys.dtype, step=upkeep.STEP)
    return file


def share(file: InvertedFile, keys: DenseArray, queries: NDArray[np.float32], live: list[slice]) -> float:
    """The share of the true 20 best of live slots that a search finds."""
    found = run_through(file.search(queries, keys.raw, keys.dtype, live=live, top_k=20))[1]
    slots = np.concatenate([np.arange(part.start, part.stop) for part in live])
    real = queries.astype(np.float64) @ keys.float32()[slots].astype(np.float64).T
    worst = np.sort(real, axis=1)[:, -20]
    assert np.isin(found, slots).all()
    scores = np.einsum("nd,nkd->nk", queries.astype(np.float64), keys.float32()[found].astype(np.float64))
    return float((scores >= worst[:, None] - 1e-6).mean())
