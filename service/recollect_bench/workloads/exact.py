"""Exact search against the bare matrix product that it cannot do without."""

from __future__ import annotations

import recollect
from recollect_bench import datasets, limits
from recollect_bench.memory import (
    LAYER,
    STREAM,
    fill,
    namespace,
    server_and_client,
    with_heads,
)
from recollect_bench.result import Figure, Outcome
from recollect_bench.scale import Scale
from recollect_bench.timing import Call, alternate
from recollect_bench.truth import recall

ENTRIES, TOP_K = 65_536, 32
QUESTIONS = (512, 4096)
GOAL = ">= 0.6"
SAMPLE = 64


def run(scale: Scale) -> Outcome:
    """512 and 4,096 queries over 65,536 x 64, in process and over a unix socket; the hardest data."""
    outcome = Outcome()
    entries = scale.size(ENTRIES)
    data = datasets.make("sphere", entries=entries, queries=max(QUESTIONS), seed=scale.seed)
    with recollect.connect("embedded://", timeout_s=600) as inside, server_and_client() as (_, outside):
        spaces, firsts = {}, {}
        for place, client in {"embedded": inside, "gRPC": outside}.items():
            spaces[place] = namespace(client, "exact", dim=data.dim, capacity=entries, index="exact")
            firsts[place] = fill(spaces[place], data.keys, data.values)
        for number in QUESTIONS:
            queries = data.queries[: scale.size(number, least=32)]
            times = alternate(
                {
                    "sgemm": limits.product(queries, data.keys),
                    **{place: _search(space, queries) for place, space in spaces.items()},
                },
                rounds=scale.rounds,
                seconds_max=scale.seconds_max,
            )
            for place, space in spaces.items():
                found = space.search(LAYER, with_heads(queries[:SAMPLE]), top_k=TOP_K, streams=[STREAM])
                outcome.figures.append(
                    Figure(
                        "exact",
                        f"{len(queries):,} queries x {entries:,} x {data.dim}, {place}",
                        str(times[place]),
                        f"sgemm {times['sgemm']}",
                        ratio=times["sgemm"].median_s / times[place].median_s,
                        goal=GOAL,
                        recall=recall(found.ids[0, 0] - firsts[place], data.keys, queries[:SAMPLE]),
                        limit=f"sgemm {_gflops(queries, data.keys, times['sgemm'].median_s):.0f} GFLOP/s",
                    )
                )
    return outcome


def _search(space: recollect.Namespace, queries: datasets.Floats) -> Call:
    asked = with_heads(queries)
    return lambda: space.search(LAYER, asked, top_k=TOP_K, streams=[STREAM])


def _gflops(queries: datasets.Floats, keys: datasets.Floats, seconds: float) -> float:
    return 2e-9 * len(queries) * keys.size / seconds
