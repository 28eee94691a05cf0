"""The streaming job while the text changes all at once: what it finds meanwhile, and whether it pauses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from recollect_bench import datasets, memory
from recollect_bench.captured import HEAD, captured
from recollect_bench.datasets import DataSet, Floats
from recollect_bench.memory import STREAM, fill, namespace, server_and_client, settle
from recollect_bench.result import Figure, Outcome
from recollect_bench.scale import Scale
from recollect_bench.timing import Spread
from recollect_bench.truth import recall

ENTRIES, STEP = 65_536, 512
BEFORE, AFTER = 48, 208
"""Steps. The ring is all of the new text after 128."""

CHECKED_EVERY, LOOKED_EVERY = 2, 8
RECALL, GOAL_RECALL, GOAL_PAUSE = 0.95, ">= 0.95", "<= 2"
SETTLE_S = 10.0


@dataclass(slots=True)
class _Steps:
    """What the job saw, step by step, the change at number `BEFORE`."""

    seconds: list[float] = field(default_factory=list)
    ids: list[NDArray[np.integer]] = field(default_factory=list)
    engines: dict[int, str] = field(default_factory=dict)


def run(scale: Scale) -> Outcome:
    """Another mixture, another subspace, another head of the model: keys, values and queries alike."""
    outcome = Outcome()
    for name in scale.data or [name for name in datasets.names() if name != "sphere"]:
        _one(name, scale, outcome)
    return outcome


def _one(name: str, scale: Scale, outcome: Outcome) -> None:
    entries, step = scale.size(ENTRIES), scale.size(STEP, least=32)
    before, after = scale.size(BEFORE, least=2), scale.size(AFTER, least=4)
    old = _text(name, scale.seed, entries=entries + before * step, queries=8 * step)
    new = _text(name, scale.seed + 1, entries=after * step, queries=8 * step)
    keys, values = np.concatenate([old.keys, new.keys]), np.concatenate([old.values, new.values])

    def queries(number: int) -> Floats:
        first = number * step % len(old.queries)
        return (old if number < before else new).queries[first : first + step]

    with server_and_client() as (_, client):
        # As stored and sent by default.
        space = namespace(
            client, "drift", dim=old.dim, capacity=entries + step, recall=RECALL, dtype="float16"
        )
        first_id = fill(space, keys[:entries], values[:entries])
        settle(space, queries(0), seconds=SETTLE_S)
        steps = _Steps()
        for number in range(before + after):
            part = slice(entries + number * step, entries + (number + 1) * step)
            seconds, ids = memory.step(space, keys[part], values[part], queries(number))
            steps.seconds.append(seconds)
            steps.ids.append(ids)
            if number % LOOKED_EVERY == 0:
                (bank,) = space.stats(streams=[STREAM]).banks
                steps.engines[number] = bank.index
    recalls = {
        number: recall(
            steps.ids[number] - first_id,
            keys[number * step : entries + (number + 1) * step],
            queries(number),
            first_id=number * step,
        )
        for number in range(before, before + after, CHECKED_EVERY)
    }
    outcome.figures += _figures(name, steps, list(recalls.values()), before)
    outcome.raw[name] = {"seconds": steps.seconds, "recall": recalls, "engines": steps.engines}


def _text(name: str, seed: int, *, entries: int, queries: int) -> DataSet:
    """Another seed is another text; of the model's keys, where there is one text, it is another head."""
    if name == "keys":
        return captured(entries=entries, queries=queries, head=HEAD + seed % 2)
    return datasets.make(name, entries=entries, queries=queries, seed=seed)


def _figures(name: str, steps: _Steps, recalls: list[float], before: int) -> list[Figure]:
    mean, worst = float(np.mean(recalls)), min(recalls)
    since = steps.seconds[before:]
    typical, slow = Spread.of(since), float(np.quantile(since, 0.99))
    exact = [number for number, index in steps.engines.items() if number >= before and index == "exact"]
    note = (
        f"exact search from step {exact[0] - before} to {exact[-1] - before}" if exact else "lists all along"
    )
    return [
        Figure(
            "drift",
            f"{name}, recall since the change",
            f"{mean:.3f}, worst step {worst:.3f}",
            f"asked for {RECALL}",
            ratio=mean,
            goal=GOAL_RECALL,
            recall=mean,
            note=note,
        ),
        Figure(
            "drift",
            f"{name}, slow steps since the change",
            f"{slow * 1e3:.3g} ms is the 99th percentile, slowest {max(since) * 1e3:.3g} ms",
            f"a step takes {typical}, before the change {Spread.of(steps.seconds[1:before])}",
            ratio=slow / typical.median_s,
            goal=GOAL_PAUSE,
        ),
    ]
