"""How fast entries come in, over gRPC and without it, against the fastest of the databases."""

from __future__ import annotations

from contextlib import ExitStack

import recollect
from recollect_bench import datasets
from recollect_bench.echo import echo
from recollect_bench.limits import copy_gb_s
from recollect_bench.memory import LAYER, STREAM, namespace, with_heads
from recollect_bench.peers.installed import reason_absent
from recollect_bench.peers.process import Peer
from recollect_bench.result import Figure, Outcome
from recollect_bench.scale import Scale
from recollect_bench.server import memory_server
from recollect_bench.timing import Call, alternate, in_a_row

ENTRIES, TOP_K = 1_048_576, 32
BATCHES = (512, 8192)
ON_END = 8
"""Batches of a turn: who ingests does it batch after batch."""

ENVELOPE_BYTES = 64
"""Of a message that carries nothing: what is added lies beside it, in shared memory."""

PEER = "lancedb"
NOTHING = "an empty call"
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
        outcome.figures += _batches(data, scale.size(batch), scale, beside=reason is None)
    return outcome


def _batches(data: datasets.DataSet, size: int, scale: Scale, *, beside: bool) -> list[Figure]:
    keys, values = data.keys[:size], data.values[:size]
    added, capacity = (with_heads(keys), with_heads(values)), scale.size(ENTRIES)
    with ExitStack() as stack:
        server, bare = stack.enter_context(memory_server()), stack.enter_context(echo(ENVELOPE_BYTES))

        def adding(name: str, *, direct: bool) -> Call:
            client = stack.enter_context(recollect.connect(server.unix_url, timeout_s=600, direct=direct))
            space = namespace(client, name, dim=data.dim, capacity=capacity)
            return lambda: space.add(LAYER, *added, streams=[STREAM])

        calls: dict[str, Call] = {
            "over gRPC": adding("grpc", direct=False),
            "without gRPC": adding("direct", direct=True),
            NOTHING: lambda: bare(bytes(ENVELOPE_BYTES)),
        }
        if beside:
            peer = stack.enter_context(Peer(PEER, dim=data.dim, capacity=capacity, top_k=TOP_K))
            calls[PEER] = lambda: peer.add(keys, values)
        turns = {name: in_a_row(call, ON_END) for name, call in calls.items()}
        times = alternate(turns, rounds=2 * scale.rounds, seconds_max=scale.seconds_max)
    theirs, nothing, copying_gb_s = times.pop(PEER, None), times.pop(NOTHING), copy_gb_s()
    return [
        Figure(
            "ingest",
            f"batches of {size:,} x {data.dim}, {way}",
            f"{size / ours.median_s:,.0f} vectors/s, {ours}",
            f"{PEER} {size / theirs.median_s:,.0f} vectors/s, {theirs}" if theirs else "",
            ratio=theirs.median_s / ours.median_s if theirs else None,
            goal=GOAL,
            limit=f"copying memory {copying_gb_s:.1f} GB/s; ours "
            f"{(keys.nbytes + values.nbytes) / ours.median_s / 1e9:.2f} GB/s; an empty call over gRPC "
            f"{nothing.median_s * 1e3:.2g} ms",
        )
        for way, ours in times.items()
    ]
