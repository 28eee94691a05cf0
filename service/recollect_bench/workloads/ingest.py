"""How fast entries come in over gRPC, against the fastest of the databases."""

from __future__ import annotations

from recollect_bench import datasets
from recollect_bench.limits import copy_gb_s
from recollect_bench.memory import LAYER, STREAM, namespace, server_and_client, with_heads
from recollect_bench.peers.installed import reason_absent
from recollect_bench.peers.process import Peer
from recollect_bench.result import Figure, Outcome
from recollect_bench.scale import Scale
from recollect_bench.timing import Call, alternate

ENTRIES, TOP_K = 1_048_576, 32
BATCHES = (512, 8192)
PEER = "lancedb"
GOAL = ">= 10"


def run(scale: Scale) -> Outcome:
    """Vectors (a key and a value of 64 float32) per second, in batches of 512 and of 8,192."""
    outcome = Outcome()
    largest = scale.size(max(BATCHES))
    data = datasets.make("sphere", entries=largest, queries=1, seed=scale.seed)
    reason = reason_absent(PEER) if scale.peers else "no peers wanted"
    if reason is not None:
        outcome.absent[PEER] = reason
    for batch in BATCHES:
        size = scale.size(batch)
        keys, values = data.keys[:size], data.values[:size]
        with server_and_client() as (_, client):
            space = namespace(client, "ingest", dim=data.dim, capacity=scale.size(ENTRIES))
            added = with_heads(keys), with_heads(values)
            calls: dict[str, Call] = {"ours": lambda: space.add(LAYER, *added, streams=[STREAM])}
            if reason is None:
                with Peer(PEER, dim=data.dim, capacity=scale.size(ENTRIES), top_k=TOP_K) as peer:
                    both = {**calls, PEER: lambda: peer.add(keys, values)}
                    times = alternate(both, rounds=8 * scale.rounds, seconds_max=scale.seconds_max)
            else:
                times = alternate(calls, rounds=8 * scale.rounds, seconds_max=scale.seconds_max)
        ours, theirs = times["ours"], times.get(PEER)
        outcome.figures.append(
            Figure(
                "ingest",
                f"batches of {size:,} x {data.dim}",
                f"{size / ours.median_s:,.0f} vectors/s, {ours}",
                f"{PEER} {size / theirs.median_s:,.0f} vectors/s, {theirs}" if theirs else "",
                ratio=theirs.median_s / ours.median_s if theirs else None,
                goal=GOAL,
                limit=f"copying memory: {copy_gb_s():.1f} GB/s; "
                f"ours {(keys.nbytes + values.nbytes) / ours.median_s / 1e9:.2f} GB/s",
            )
        )
    return outcome
