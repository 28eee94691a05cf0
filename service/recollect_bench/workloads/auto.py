"""The engine that `auto` chose against the best fixed choice, for sizes of bank and of question."""

from __future__ import annotations

from dataclasses import dataclass

import recollect
from recollect_bench import datasets
from recollect_bench.memory import (
    LAYER,
    STREAM,
    Index,
    engine_of,
    fill,
    namespace,
    server_and_client,
    settle,
    with_heads,
)
from recollect_bench.result import SIZE_PLOT, Figure, Outcome
from recollect_bench.scale import Scale
from recollect_bench.timing import Call, Spread, alternate
from recollect_bench.truth import recall

SIZES = (4096, 32_768, 131_072, 524_288)
QUESTIONS = (1, 8, 512, 4096)
TOP_K, SAMPLE = 32, 64
ENGINES: tuple[Index, ...] = ("exact", "ivf", "auto")
GOAL = "<= 1.15"
RECALL_LEAST = 0.95
"""A fixed choice whose recall is lower is no choice."""


def run(scale: Scale) -> Outcome:
    """Auto / the best of exact and ivf, each data set and size."""
    outcome = Outcome()
    sizes = sorted({scale.size(size) for size in SIZES})
    for name in scale.data or datasets.names():
        data = datasets.make(name, entries=sizes[-1], queries=max(QUESTIONS), seed=scale.seed)
        with server_and_client() as (_, client):
            spaces: dict[str, recollect.Namespace] = {
                engine: namespace(client, engine, dim=data.dim, capacity=sizes[-1], index=engine)
                for engine in ENGINES
            }
            held = 0
            first_ids: dict[str, int] = dict.fromkeys(ENGINES, 0)
            for size in sizes:
                for engine, space in spaces.items():
                    first = fill(space, data.keys[held:size], data.values[held:size])
                    first_ids[engine] = first - held
                    settle(space, data.queries[:512], seconds=scale.seconds_max / 2)
                held = size
                _ask(_Bank(data, size, first_ids), spaces, scale, outcome)
    return outcome


@dataclass(frozen=True, slots=True)
class _Bank:
    data: datasets.DataSet
    size: int
    first_ids: dict[str, int]


def _ask(bank: _Bank, spaces: dict[str, recollect.Namespace], scale: Scale, outcome: Outcome) -> None:
    data, size = bank.data, bank.size
    for number in QUESTIONS:
        queries = data.queries[:number]
        calls = {engine: _search(space, queries) for engine, space in spaces.items()}
        # Most take a millisecond or a few: as often as there is time for, or chance decides the ratio.
        times = alternate(calls, rounds=4 * scale.rounds, seconds_max=scale.seconds_max / 8, warm=2)
        sample = data.queries[: min(number, SAMPLE)]
        recalls = {}
        for engine, space in spaces.items():
            # Asked as the question was, since an engine may be chosen by its size.
            ids = space.search(LAYER, with_heads(queries), top_k=TOP_K, streams=[STREAM]).ids[0, 0]
            recalls[engine] = recall(ids[: len(sample)] - bank.first_ids[engine], data.keys[:size], sample)
        for engine, spread in times.items():
            line = outcome.series.setdefault(f"{SIZE_PLOT}{data.name}, {number:,} queries", {}).setdefault(
                engine, []
            )
            line.append((float(size), spread.median_s * 1e3))
        outcome.figures.append(_figure(bank, number, times, recalls, str(engine_of(spaces["auto"]))))


def _figure(
    bank: _Bank, number: int, times: dict[str, Spread], recalls: dict[str, float], chosen: str
) -> Figure:
    fixed = ["exact"]
    if recalls["ivf"] >= min(RECALL_LEAST, recalls["auto"]):
        fixed.append("ivf")
    best = min(fixed, key=lambda engine: times[engine].median_s)
    return Figure(
        "auto",
        f"{bank.data.name}, {number:,} queries x {bank.size:,}",
        str(times["auto"]),
        f"{best} {times[best]}",
        ratio=times["auto"].median_s / times[best].median_s,
        goal=GOAL,
        recall=recalls["auto"],
        their_recall=recalls[best],
        note=chosen,
    )


def _search(space: recollect.Namespace, queries: datasets.Floats) -> Call:
    asked = with_heads(queries)
    return lambda: space.search(LAYER, asked, top_k=TOP_K, streams=[STREAM])
