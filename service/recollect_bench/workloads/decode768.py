"""One decoding step over half a million large keys, against plain exact FAISS."""

from __future__ import annotations

from itertools import cycle

import numpy as np

from recollect_bench import datasets
from recollect_bench.memory import LAYER, STREAM, fill, namespace, server_and_client, settle, with_heads
from recollect_bench.peers.installed import reason_absent
from recollect_bench.peers.process import Peer
from recollect_bench.result import Figure, Outcome
from recollect_bench.scale import Scale
from recollect_bench.timing import Spread, alternate, in_a_row
from recollect_bench.truth import recall

ENTRIES, DIM, VALUE_DIM = 524_288, 768, 64
QUERIES, SAMPLE, TOP_K = 8, 256, 32
ON_END = 4
"""Steps of a turn: decoding takes one after the other."""

GOAL_MS, GOAL_RATIO = "<= 10", ">= 20"


def run(scale: Scale) -> Outcome:
    """8 queries x 524,288 x 768, near a subspace: median ms, and against IndexFlatIP."""
    outcome = Outcome()
    entries = scale.size(ENTRIES)
    data = datasets.make(
        (scale.data or ("subspace",))[0],
        entries=entries,
        queries=SAMPLE,
        dim=DIM,
        value_dim=VALUE_DIM,
        seed=scale.seed,
    )
    value_dim = data.values.shape[1]
    reason = reason_absent("faiss") if scale.peers else "no peers wanted"
    with server_and_client() as (_, client):
        # As stored and sent by default; what is judged is float32.
        space = namespace(
            client, "decode", dim=data.dim, value_dim=value_dim, capacity=entries, dtype="float16"
        )
        first = fill(space, data.keys, data.values)
        engine = settle(space, data.queries, seconds=3 * scale.seconds_max, at_once=QUERIES)
        # Each step asks anew, as decoding does: no cache has what it will read.
        steps = [data.queries[n : n + QUERIES] for n in range(0, SAMPLE, QUERIES)]
        ours, theirs = cycle(steps), cycle(steps)

        def attend() -> None:
            space.attend(LAYER, with_heads(next(ours)), top_k=TOP_K, streams=[STREAM])

        calls = {"ours": in_a_row(attend, ON_END)}
        if reason is None:
            peer = Peer("faiss", dim=data.dim, value_dim=value_dim, capacity=entries, top_k=TOP_K)
            with peer:
                peer.add(data.keys, data.values)
                search = in_a_row(lambda: peer.search(next(theirs))[0], ON_END)
                rounds = {**calls, "faiss": search}
                times = alternate(rounds, rounds=scale.rounds, seconds_max=scale.seconds_max, warm=3)
        else:
            outcome.absent["faiss"] = reason
            times = alternate(calls, rounds=scale.rounds, seconds_max=scale.seconds_max, warm=3)
        ids = [
            space.search(LAYER, with_heads(step), top_k=TOP_K, streams=[STREAM]).ids[0, 0] for step in steps
        ]
        reached = recall(np.concatenate(ids) - first, data.keys, data.queries)
    case = f"{data.name}, {QUERIES} queries x {entries:,} x {data.dim}"
    outcome.figures += _figures(case, times, reached, note=str(engine), keys_bytes=data.keys.nbytes)
    return outcome


def _figures(
    case: str, times: dict[str, Spread], reached: float, *, note: str, keys_bytes: int
) -> list[Figure]:
    ours = times["ours"]
    figures = [
        Figure(
            "decode768",
            f"{case}, ms",
            str(ours),
            ratio=ours.median_s * 1e3,
            goal=GOAL_MS,
            recall=reached,
            note=note,
        )
    ]
    if "faiss" in times:
        theirs = times["faiss"]
        figures.append(
            Figure(
                "decode768",
                f"{case}, against exact FAISS",
                str(ours),
                str(theirs),
                ratio=theirs.median_s / ours.median_s,
                goal=GOAL_RATIO,
                recall=reached,
                their_recall=1.0,
                limit=f"reading all keys at FAISS's {keys_bytes / theirs.median_s / 1e9:.0f} GB/s",
            )
        )
    return figures
