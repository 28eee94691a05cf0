"""Attend against fetching keys and values and attending in the client."""

from __future__ import annotations

import numpy as np

from recollect_bench import datasets
from recollect_bench.memory import LAYER, STREAM, fill, namespace, server_and_client, settle, with_heads
from recollect_bench.result import Figure, Outcome
from recollect_bench.scale import Scale
from recollect_bench.timing import alternate

ENTRIES, QUESTION, TOP_K = 65_536, 4096, 32
GOAL = ">= 3"
LEAST_SHARE = 0.02
"""Of the search: attend's own part counts as this much at least, since a difference of two times is noisy."""


def run(scale: Scale) -> Outcome:
    """4,096 queries over gRPC: (fetch - search) / (attend - search)."""
    entries = scale.size(ENTRIES)
    data = datasets.make("subspace", entries=entries, queries=scale.size(QUESTION), seed=scale.seed)
    asked, factor = with_heads(data.queries), data.dim**-0.5
    with server_and_client() as (_, client):
        space = namespace(client, "fetch", dim=data.dim, capacity=entries)
        fill(space, data.keys, data.values)
        settle(space, data.queries, seconds=scale.seconds_max)

        def fetch() -> None:
            found = space.search(LAYER, asked, top_k=TOP_K, streams=[STREAM], include=["keys", "values"])
            assert found.keys is not None
            assert found.values is not None
            scores = np.einsum("bhtd,bhtkd->bhtk", asked, found.keys) * factor
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            np.einsum("bhtk,bhtkd->bhtd", weights, found.values)

        times = alternate(
            {
                "search": lambda: space.search(LAYER, asked, top_k=TOP_K, streams=[STREAM]),
                "attend": lambda: space.attend(LAYER, asked, top_k=TOP_K, streams=[STREAM]),
                "fetch": fetch,
            },
            rounds=scale.rounds,
            seconds_max=scale.seconds_max,
        )
    search, attend, fetched = (times[name].median_s for name in ("search", "attend", "fetch"))
    figure = Figure(
        "fetch",
        f"{len(data.queries):,} queries x {entries:,} x {data.dim}, top {TOP_K}",
        f"attend {times['attend']}",
        f"fetch {times['fetch']}",
        ratio=(fetched - search) / max(attend - search, LEAST_SHARE * search),
        goal=GOAL,
        limit=f"search alone {times['search']}",
        note="time beyond the search",
    )
    return Outcome(figures=[figure])
