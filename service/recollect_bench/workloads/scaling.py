"""How the cost of one question grows with the bank."""

from __future__ import annotations

from recollect_bench import datasets, limits
from recollect_bench.memory import LAYER, STREAM, fill, namespace, server_and_client, settle, with_heads
from recollect_bench.result import SIZE_PLOT, Figure, Outcome
from recollect_bench.scale import Scale
from recollect_bench.timing import Spread, alternate
from recollect_bench.truth import recall

SIZES = (16_384, 65_536, 262_144, 1_048_576, 2_097_152)
QUESTION, TOP_K, SAMPLE = 512, 32, 64
GOAL = "<= 6"
BASE = 65_536


def run(scale: Scale) -> Outcome:
    """512 queries x 16,384 to 2,097,152 x 64, near a subspace."""
    outcome = Outcome()
    name = (scale.data or ("subspace",))[0]
    sizes = [scale.size(size) for size in SIZES]
    data = datasets.make(name, entries=sizes[-1], queries=scale.size(QUESTION, least=32), seed=scale.seed)
    asked = with_heads(data.queries)
    times: dict[int, Spread] = {}
    with server_and_client() as (_, client):
        # As stored and sent by default.
        space = namespace(client, "scaling", dim=data.dim, capacity=sizes[-1], dtype="float16")
        held = first = 0
        for size in dict.fromkeys(sizes):
            begun = fill(space, data.keys[held:size], data.values[held:size])
            first, held = first if held else begun, size
            engine = settle(space, data.queries, seconds=3 * scale.seconds_max)
            keys = data.keys[:size]
            taken = alternate(
                {
                    "ours": lambda: space.search(LAYER, asked, top_k=TOP_K, streams=[STREAM]),
                    "sgemm": limits.product(data.queries, keys),
                },
                rounds=scale.rounds,
                seconds_max=scale.seconds_max / 2,
                warm=2,
            )
            times[size] = taken["ours"]
            found = space.search(LAYER, asked, top_k=TOP_K, streams=[STREAM]).ids[0, 0][:SAMPLE] - first
            base = times.get(scale.size(BASE))
            outcome.figures.append(
                Figure(
                    "scaling",
                    f"{name}, {len(data.queries)} queries x {size:,} x {data.dim}",
                    str(taken["ours"]),
                    f"{base} at {scale.size(BASE):,}" if base else "",
                    ratio=taken["ours"].median_s / base.median_s if base else None,
                    goal=GOAL if size == sizes[-1] else "",
                    recall=recall(found, keys, data.queries[:SAMPLE]),
                    limit=f"sgemm {taken['sgemm']}",
                    note=str(engine),
                )
            )
            lines = outcome.series.setdefault(
                f"{SIZE_PLOT}{name}, {len(data.queries)} queries, to 2 million", {}
            )
            for line, spread in taken.items():
                lines.setdefault(line, []).append((float(size), spread.median_s * 1e3))
    return outcome
