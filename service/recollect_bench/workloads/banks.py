"""Decoding steps while the lists of many banks are made at once: whether a call waits for all of that."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np

import recollect
from recollect_bench import datasets
from recollect_bench.datasets import DataSet
from recollect_bench.memory import BLOCK, LAYER, STREAM, TOP_K, namespace, server_and_client, with_heads
from recollect_bench.result import Figure, Outcome
from recollect_bench.scale import Scale
from recollect_bench.timing import Spread

ENTRIES, HEADS, DIM = 20_480, 4, 64
NAMESPACES, STREAMS = 64, 16
GOAL = "<= 2"
SECONDS = 10.0
"""Of each measurement; then lists may be there or not."""


def run(scale: Scale) -> Outcome:
    """Many namespaces, of which each call reads one; and many streams, which each call reads all."""
    outcome = Outcome()
    entries = scale.size(ENTRIES)
    data = datasets.make("subspace", entries=entries * HEADS, queries=2048 * HEADS, seed=scale.seed)
    seconds = min(SECONDS, scale.seconds_max / 2)
    spaces, streams = scale.size(NAMESPACES, least=2), scale.size(STREAMS, least=2)
    with server_and_client() as (_, client):
        made = [_namespace(client, f"n{number}", entries) for number in range(spaces)]
        for space in made:
            _fill(space, data, [STREAM])
        steps = [_step(space, data, [STREAM]) for space in made]
        took = _times(steps, seconds)
        _tell(f"{spaces} namespaces, one in each step", took, _ready(made, [STREAM]), outcome)
        for space in made:
            client.delete_namespace(space.name)
        space, names = _namespace(client, "s", entries), [str(number) for number in range(streams)]
        _fill(space, data, names)
        took = _times([_step(space, data, names)], seconds)
        _tell(f"{streams} streams, all in each step", took, _ready([space], names), outcome)
    return outcome


def _namespace(client: recollect.Client, name: str, entries: int) -> recollect.Namespace:
    return namespace(client, name, dim=DIM, capacity=2 * entries, heads=HEADS, dtype="float16")


def _fill(space: recollect.Namespace, data: DataSet, streams: Sequence[str]) -> None:
    keys = data.keys.reshape(HEADS, -1, DIM)
    for stream in streams:
        for first in range(0, keys.shape[1], BLOCK):
            part = with_heads(keys[:, first : first + BLOCK])
            space.add(LAYER, part, part, streams=[stream])


def _step(space: recollect.Namespace, data: DataSet, streams: Sequence[str]) -> Callable[[], None]:
    """One token of each stream."""
    queries = data.queries.reshape(HEADS, -1, DIM)
    tokens = itertools.cycle(range(queries.shape[1] - len(streams) + 1))

    def step() -> None:
        first = next(tokens)
        rows = queries[:, first : first + len(streams)]  # [H, B, D]
        q = np.ascontiguousarray(rows.transpose(1, 0, 2)[:, :, None])  # [B, H, 1, D]
        space.add(LAYER, q, q, streams=streams)
        space.attend(LAYER, q, top_k=TOP_K, streams=streams)

    return step


def _times(steps: Sequence[Callable[[], None]], seconds: float) -> list[float]:
    """Steps in turn, from when nothing was asked for yet on."""
    took: list[float] = []
    until = time.perf_counter() + seconds
    for step in itertools.cycle(steps):
        begun = time.perf_counter()
        step()
        now = time.perf_counter()
        took.append(now - begun)
        if now > until:
            break
    return took


def _ready(spaces: Sequence[recollect.Namespace], streams: Sequence[str]) -> str:
    banks = [bank for space in spaces for bank in space.stats(streams=streams).banks]
    return f"in the end {sum(bank.index == 'ivf' for bank in banks)} of {len(banks)} banks had lists"


def _tell(name: str, took: list[float], note: str, outcome: Outcome) -> None:
    typical, slow = Spread.of(took), float(np.quantile(took, 0.99))
    outcome.raw[name] = {"seconds": took}
    outcome.figures.append(
        Figure(
            "banks",
            name,
            f"{slow * 1e3:.3g} ms is the 99th percentile, slowest {max(took) * 1e3:.3g} ms",
            f"a step takes {typical}",
            ratio=slow / typical.median_s,
            goal=GOAL,
            note=note,
        )
    )
