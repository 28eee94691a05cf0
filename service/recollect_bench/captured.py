"""Keys, values and queries of the demo's model, as its memory layer sends them while it reads real text."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from recollect_bench.datasets import DataSet, Floats

CACHE = Path(tempfile.gettempdir()) / "recollect-bench"
DOCUMENTS = 8
HEAD = 0
"""The head whose bank is the data set `keys`."""


def captured(*, entries: int, queries: int, seed: int = 0, head: int = HEAD) -> DataSet:
    """One head's keys and values in the order of the text, and its queries on text that comes later.

    Args:
        entries: How many keys and values.
        queries: How many queries.
        seed: Of the choice of queries.
        head: Which head of the memory layer.

    Raises:
        ImportError: PyTorch is not installed.
    """
    keys, values, asked = capture_all(entries + max(queries, 4096))
    generator = np.random.default_rng(seed)
    later = np.arange(entries, len(asked))
    chosen = generator.choice(later, size=queries, replace=queries > len(later))
    return DataSet(
        "keys",
        keys=np.ascontiguousarray(keys[:entries, head]),
        values=np.ascontiguousarray(values[:entries, head]),
        queries=np.ascontiguousarray(asked[chosen, head]),
    )


def capture_all(tokens: int) -> tuple[Floats, Floats, Floats]:
    """Keys, values and queries of all heads, each [tokens, heads, head_dim], kept between runs."""
    size = 1 << max(16, (tokens - 1).bit_length())
    path = CACHE / f"keys-{size}.npz"
    if not path.exists():
        from recollect_bench.reading import read

        CACHE.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        keys, values, queries = read(size)
        np.savez(partial, keys=keys, values=values, queries=queries)
        partial.replace(path)
    with np.load(path, allow_pickle=False) as kept:
        return (kept["keys"][:tokens], kept["values"][:tokens], kept["queries"][:tokens])
