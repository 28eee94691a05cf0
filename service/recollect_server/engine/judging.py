"""How much of what exact search finds is found in lists, and what lists learn from it: a little at a time."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np

from recollect_server.domain import work
from recollect_server.domain.arrays import Float32, Int64, Raw
from recollect_server.domain.spec import NamespaceSpec
from recollect_server.domain.steps import in_steps
from recollect_server.engine import kernels
from recollect_server.engine.costs import rows_in
from recollect_server.engine.ivf import InvertedFile
from recollect_server.engine.recall import recall_of, those_in

TOGETHER, TOGETHER_LEAST, HITS = 16, 2, 512
"""Queries that are looked for in lists, and learnt from, in one step; fewer if they have more hits than that
together, which takes two or three milliseconds."""

JUDGED_ANEW = 4
"""How often to compare again, at most, because entries have moved meanwhile."""

NO_KEYS: Raw = np.empty((0, 0, 0), dtype=np.float32)


@dataclass(slots=True)
class Present:
    """What a bank holds, as background work finds it at its turn: between two turns it may change.

    Attributes:
        keys: [heads, slots, D]; none between turns.
        live: Slots that count.
        moves: How often entries came to other slots.
    """

    keys: Raw = field(default_factory=lambda: NO_KEYS)
    live: Sequence[slice] = field(default_factory=tuple)
    moves: int = 0


def judge(
    file: InvertedFile,
    kept: Sequence[tuple[Float32, int]],
    *,
    head: int,
    present: Present,
    spec: NamespaceSpec,
    step: int,
) -> Generator[int, None, list[float]]:
    """Compares queries with exact search, and has the file learn from them.

    Args:
        file: Of the head.
        kept: Queries [D], each with the top_k that it was asked with.
        head: Whose keys.
        present: Of the bank.
        spec: Of its namespace.
        step: Multiply-adds of one step, at most.

    Returns:
        The recall of each, as the file was before; of none, if it answers none or entries keep moving.
    """
    recalls: list[float] = []
    for top_k in sorted({top_k for _, top_k in kept}):
        queries = np.stack([query for query, of in kept if of == top_k])
        scores, hits = yield from _true_hits(queries, top_k, head=head, present=present, spec=spec, step=step)
        moves = present.moves
        together = max(TOGETHER_LEAST, min(TOGETHER, HITS // top_k))
        for first in range(0, len(queries), together):
            if moves != present.moves or not (hits >= 0).any():
                break  # entries have moved: these hits are of other slots
            keys, live = present.keys[head], list(present.live)
            part = slice(first, first + together)
            asked, wanted = queries[part], those_in(live, hits[part])  # the oldest may be gone since
            if file.is_trusted:
                found = yield from in_steps(
                    file.search(asked, keys, spec.dtype, live=live, top_k=top_k), step
                )
                if moves != present.moves:
                    break
                recalls += map(recall_of, found[0], np.where(wanted >= 0, scores[part], -np.inf))
            file.learn(asked, wanted, keys=keys, dtype=spec.dtype, live=live)
            yield together * file.centroids.size
    return recalls


def _true_hits(
    queries: Float32, top_k: int, *, head: int, present: Present, spec: NamespaceSpec, step: int
) -> Generator[int, None, tuple[Float32, Int64]]:
    """What exact search finds for queries [N, D]: scores, slots [N, K]; none if entries keep moving."""
    count, dim = queries.shape
    # To keep the first of so many takes longer than to multiply, until thresholds are high.
    best, rows_max = kernels.Best(count, top_k), rows_in(step, count * (dim + top_k))
    for _ in range(JUDGED_ANEW):
        moves = present.moves
        # Within a turn the ring does not change. Between two it may; what has moved is looked for again.
        for part in list(present.live):
            for first in range(part.start, part.stop, rows_max):
                rows = slice(first, min(part.stop, first + rows_max, present.keys.shape[1]))
                kernels.scan(
                    best,
                    queries[None],
                    present.keys[head : head + 1],
                    query_dtype=kernels.FLOAT32,
                    key_dtype=spec.dtype,
                    rows=rows,
                )
                yield work.searched(count, rows.stop - rows.start, dim)
        if moves == present.moves:
            break
        best = kernels.Best(count, top_k)
    return best.ordered()
