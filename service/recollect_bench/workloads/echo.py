"""One decoding step against an echo of the same bytes: what the memory adds to a call over gRPC."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np

import recollect
from recollect_bench import datasets
from recollect_bench.echo import echo
from recollect_bench.memory import LAYER, STREAM, fill, namespace
from recollect_bench.result import Figure, Outcome
from recollect_bench.scale import Scale
from recollect_bench.server import memory_server
from recollect_bench.timing import Call, alternate, in_a_row

HEADS, DIM, ENTRIES, TOP_K = 8, 64, 4096, 32
CALLS = 100
"""In a row, before the other one's turn."""
ENVELOPE_BYTES = 64
GOAL = ">= 0.6"


def run(scale: Scale) -> Outcome:
    """8 heads x 1 query over 4,096 entries on one connection: calls per second / an echo's over gRPC."""
    entries, calls = scale.size(ENTRIES), scale.size(CALLS, least=8)
    data = datasets.make("subspace", entries=HEADS * entries, queries=HEADS, seed=scale.seed)
    keys, values = (array.reshape(HEADS, entries, DIM) for array in (data.keys, data.values))
    queries = data.queries.reshape(1, HEADS, 1, DIM)
    # As stored and sent by default: float16.
    tensor_bytes = queries.size * np.dtype(np.float16).itemsize
    sent = bytes(tensor_bytes + ENVELOPE_BYTES)
    replied = tensor_bytes + HEADS * np.dtype(np.float32).itemsize + ENVELOPE_BYTES
    with memory_server() as server, echo(replied) as bare, ExitStack() as stack:

        def attending(name: str, *, direct: bool) -> Call:
            client = stack.enter_context(recollect.connect(server.unix_url, timeout_s=600, direct=direct))
            space = namespace(client, name, dim=DIM, heads=HEADS, capacity=entries, dtype="float16")
            fill(space, keys, values)
            return lambda: space.attend(LAYER, queries, top_k=TOP_K, streams=[STREAM], with_ids=False)

        calls_of: dict[str, Call] = {
            "over gRPC": attending("grpc", direct=False),
            "without gRPC": attending("direct", direct=True),
            "echo": lambda: bare(sent),
        }
        turns = {name: in_a_row(call, calls) for name, call in calls_of.items()}
        times = alternate(turns, rounds=2 * scale.rounds, seconds_max=scale.seconds_max, warm=2)
    theirs, outcome = times.pop("echo"), Outcome()
    for way, ours in times.items():
        figure = Figure(
            "echo",
            f"{HEADS} heads x 1 query x {entries:,} x {DIM}, {way}",
            f"{1 / ours.median_s:,.0f} calls/s, {ours}",
            f"echo over gRPC {1 / theirs.median_s:,.0f} calls/s, {theirs}",
            ratio=theirs.median_s / ours.median_s,
            goal=GOAL,
            limit=f"{len(sent):,} bytes up and {replied:,} down",
        )
        outcome.figures.append(figure)
    return outcome
