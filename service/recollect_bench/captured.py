"""Keys, values and queries of the demo's model, as its memory layer sends them while it reads real text."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from recollect_bench.datasets import DataSet, Floats

CACHE = Path(tempfile.gettempdir()) / "recollect-bench"
"""Chapters that were read before: reading is slow, and always gives the same."""

CHAPTER = 65_536
"""Tokens that are read, and kept, together."""

HEAD = 0
"""The head whose bank is the data set `keys`."""

LATER = 4096
"""Queries are drawn from at least so many tokens of text that comes after the entries."""


def captured(*, entries: int, queries: int, seed: int = 0, head: int = HEAD) -> DataSet:
    """One head's keys and values in the order of the text, and its queries on text that comes later.

    Args:
        entries: How many keys and values.
        queries: How many queries.
        seed: Of the choice of queries.
        head: Which head of the memory layer.

    Raises:
        ImportError: PyTorch is not installed.
        ValueError: The corpus is shorter than what is asked for.
    """
    keys, values, asked = capture(entries + max(queries, LATER))
    later = np.arange(entries, len(asked))
    chosen = np.random.default_rng(seed).choice(later, size=queries, replace=False)
    return DataSet(
        "keys",
        keys=np.ascontiguousarray(keys[:entries, head]),
        values=np.ascontiguousarray(values[:entries, head]),
        queries=np.ascontiguousarray(asked[chosen, head]),
    )


def capture(tokens: int) -> tuple[Floats, Floats, Floats]:
    """Keys, values and queries of all heads on the corpus, each [tokens, heads, head_dim]."""
    chapters = [_chapter(number) for number in range(-(-tokens // CHAPTER))]
    keys, values, queries = (np.concatenate(parts)[:tokens] for parts in zip(*chapters, strict=True))
    return keys, values, queries


def _chapter(number: int) -> tuple[Floats, Floats, Floats]:
    path = CACHE / f"chapter-{number}.npz"
    if not path.exists():
        from recollect_bench.reading import read

        CACHE.mkdir(parents=True, exist_ok=True)
        keys, values, queries = read(number * CHAPTER, CHAPTER)
        with tempfile.NamedTemporaryFile(dir=CACHE, delete=False) as partial:
            np.savez(partial, keys=keys, values=values, queries=queries)
        Path(partial.name).replace(path)
    with np.load(path, allow_pickle=False) as kept:
        return kept["keys"], kept["values"], kept["queries"]
