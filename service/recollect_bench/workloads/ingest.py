"""How fast entries come in over gRPC, against the fastest of the databases."""

from __future__ import annotations

from contextlib import ExitStack

from recollect_bench import datasets
from recollect_bench.echo import echo
from recollect_bench.limits import copy_gb_s
from recollect_bench.memory import LAYER, STREAM, namespace, server_and_client, with_heads
from recollect_bench.peers.installed import reason_absent
from recollect_bench.peers.process import Peer
from recollect_bench.result import Figure, Outcome
from recollect_bench.scale import Scale
from recollect_bench.timing import Call, alternate, in_a_row

ENTRIES, TOP_K = 1_048_576, 32
BATCHES = (512, 8192)
ON_END = 8
"""Batches of a turn: who ingests does it batch after batch."""

ENVELOPE_BYTES = 64
"""Of a message that carries nothing: what is added lies beside it, in shared memory."""

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
        outcome.figures.append(_batches(data, scale.size(batch), scale, beside=reason is None))
    return outcome


def _batches(data: datasets.DataSet, size: int, scale: Scale, *, beside: bool) -> Figure:
    keys, values = data.keys[:size], data.values[:size]
    added, capacity = (with_heads(keys), with_heads(values)), scale.size(ENTRIES)
    with ExitStack() as stack:
        _, client = stack.enter_context(server_and_client())
        space = namespace(client, "ingest", dim=data.dim, capacity=capacity)
        bare = stack.enter_context(echo(ENVELOPE_BYTES))
        calls: dict[str, Call] = {
            "ours": lambda: space.add(LAYER, *added, streams=[STREAM]),
            "nothing": lambda: bare(bytes(ENVELOPE_BYTES)),
        }
        if beside:
            peer = stack.enter_context(Peer(PEER, dim=data.dim, capacity=capacity, top_k=TOP_K))
            calls[PEER] = lambda: peer.add(keys, values)
        turns = {name: in_a_row(call, ON_END) for name, call in calls.items()}
        times = alternate(turns, rounds=2 * scale.rounds, seconds_max=scale.seconds_max)
    ours, theirs = times["ours"], times.get(PEER)
    return Figure(
        "ingest",
        f"batches of {size:,} x {data.dim}",
        f"{size / ours.median_s:,.0f} vectors/s, {ours}",
        f"{PEER} {size / theirs.median_s:,.0f} vectors/s, {theirs}" if theirs else "",
        ratio=theirs.median_s / ours.median_s if theirs else None,
        goal=GOAL,
        limit=f"copying memory {copy_gb_s():.1f} GB/s; ours "
        f"{(keys.nbytes + values.nbytes) / ours.median_s / 1e9:.2f} GB/s; an empty call over gRPC "
        f"{times['nothing'].median_s * 1e3:.2g} ms",
    )
