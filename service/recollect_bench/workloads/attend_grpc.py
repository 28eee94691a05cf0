"""Attend through a unix socket against attend in process."""

from __future__ import annotations

import recollect
from recollect_bench import datasets
from recollect_bench.memory import LAYER, STREAM, fill, namespace, server_and_client, settle, with_heads
from recollect_bench.result import Figure, Outcome
from recollect_bench.scale import Scale
from recollect_bench.timing import Call, alternate

ENTRIES, QUESTION, TOP_K = 65_536, 4096, 32
GOAL = "<= 1.15"


def run(scale: Scale) -> Outcome:
    """4,096 queries x 65,536 x 64: over gRPC / embedded."""
    outcome = Outcome()
    entries = scale.size(ENTRIES)
    for name in scale.data or ("subspace", "sphere"):
        data = datasets.make(name, entries=entries, queries=scale.size(QUESTION), seed=scale.seed)
        asked = with_heads(data.queries)
        with recollect.connect("embedded://", timeout_s=600) as inside, server_and_client() as (_, outside):
            calls: dict[str, Call] = {}
            for place, client in {"embedded": inside, "unix": outside}.items():
                space = namespace(client, "attend", dim=data.dim, capacity=entries)
                fill(space, data.keys, data.values)
                settle(space, data.queries, seconds=scale.seconds_max)
                calls[place] = _attend(space, asked)
            times = alternate(calls, rounds=scale.rounds, seconds_max=scale.seconds_max)
        outcome.figures.append(
            Figure(
                "attend_grpc",
                f"{name}, {len(data.queries):,} queries x {entries:,} x {data.dim}",
                f"unix {times['unix']}",
                f"embedded {times['embedded']}",
                ratio=times["unix"].median_s / times["embedded"].median_s,
                goal=GOAL,
            )
        )
    return outcome


def _attend(space: recollect.Namespace, asked: datasets.Floats) -> Call:
    return lambda: space.attend(LAYER, asked, top_k=TOP_K, streams=[STREAM], with_ids=False)
