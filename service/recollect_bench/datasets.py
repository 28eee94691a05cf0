"""Data sets: keys, values and queries, seeded. How hard the keys are decides how fast a search can be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

MIXTURE_CENTRES = 1000
MIXTURE_SPREAD = 0.35
"""Length of the noise around a centre of length 1: a query's neighbours are those of its own centre."""

SUBSPACE_DIM, SUBSPACE_NOISE = 16, 0.1
"""The keys lie near a subspace of so many dimensions; length of the noise beside a point of length 1."""

SPECTRUM_DECAY = 0.7
"""The i-th axis of the anisotropic Gaussian has a standard deviation of i ** -0.7."""

HARD, EASY = ("keys", "subspace", "anisotropic", "sphere"), ("mixture",)


@dataclass(frozen=True, slots=True)
class DataSet:
    """What a memory is filled with, in the order of its entries, and what it is asked.

    Attributes:
        name: Of the data set.
        keys: [N, Dk], of length 1, as memorizing attention has them.
        values: [N, Dv].
        queries: [M, Dk], from the same distribution.
    """

    name: str
    keys: Floats
    values: Floats
    queries: Floats

    @property
    def dim(self) -> int:
        """Size of a key."""
        return int(self.keys.shape[1])


Points = Callable[[np.random.Generator, int, int], Floats]
"""(Shared by keys and queries through the generator's state, number, dimension) -> points."""


def names() -> tuple[str, ...]:
    """All data sets, the one that counts first."""
    return ("keys", *_MAKERS)


def make(
    name: str, *, entries: int, queries: int, dim: int = 64, value_dim: int | None = None, seed: int = 0
) -> DataSet:
    """Makes a data set; the same arguments give the same numbers.

    Args:
        name: One of `names()`.
        entries: N.
        queries: M.
        dim: Size of a key. Captured keys and values have the size of their model's heads instead.
        value_dim: Size of a value; None: that of a key.
        seed: Of all that is drawn.

    Raises:
        ValueError: There is no such data set.
    """
    if name == "keys":
        from recollect_bench.captured import captured

        return captured(entries=entries, queries=queries, seed=seed)
    if name not in _MAKERS:
        raise ValueError(f"there is no data set {name!r}; there are {', '.join(names())}")
    generator = np.random.default_rng([seed, list(_MAKERS).index(name), dim])
    # One draw for both: queries are points that were left out.
    points = _MAKERS[name](generator, entries + queries, dim)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    values = generator.standard_normal((entries, value_dim or dim), dtype=np.float32)
    return DataSet(name, keys=points[:entries], values=values, queries=points[entries:])


def _mixture(generator: np.random.Generator, number: int, dim: int) -> Floats:
    centres = _unit(generator.standard_normal((MIXTURE_CENTRES, dim), dtype=np.float32))
    points = _noise(generator, number, dim, MIXTURE_SPREAD)
    points += centres[generator.integers(MIXTURE_CENTRES, size=number)]
    return points


def _subspace(generator: np.random.Generator, number: int, dim: int) -> Floats:
    basis, _ = np.linalg.qr(generator.standard_normal((dim, SUBSPACE_DIM)))
    inside = _unit(generator.standard_normal((number, SUBSPACE_DIM), dtype=np.float32))
    points = _noise(generator, number, dim, SUBSPACE_NOISE)
    points += inside @ basis.T.astype(np.float32)
    return points


def _anisotropic(generator: np.random.Generator, number: int, dim: int) -> Floats:
    spectrum = (np.arange(1, dim + 1) ** -SPECTRUM_DECAY).astype(np.float32)
    rotation, _ = np.linalg.qr(generator.standard_normal((dim, dim)))
    points = generator.standard_normal((number, dim), dtype=np.float32) * spectrum
    turned: Floats = np.matmul(points, rotation.T.astype(np.float32), dtype=np.float32)
    return turned


def _sphere(generator: np.random.Generator, number: int, dim: int) -> Floats:
    return generator.standard_normal((number, dim), dtype=np.float32)


def _noise(generator: np.random.Generator, number: int, dim: int, length: float) -> Floats:
    noise = generator.standard_normal((number, dim), dtype=np.float32)
    noise *= np.float32(length / np.sqrt(dim))
    return noise


def _unit(points: Floats) -> Floats:
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points


_MAKERS: dict[str, Points] = {
    "mixture": _mixture,
    "subspace": _subspace,
    "anisotropic": _anisotropic,
    "sphere": _sphere,
}
