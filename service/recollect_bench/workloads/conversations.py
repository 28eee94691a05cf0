"""Many conversations that decode at once, against one after another."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import recollect
from recollect_bench import datasets
from recollect_bench.memory import LAYER, namespace
from recollect_bench.result import Figure, Outcome
from recollect_bench.scale import Scale
from recollect_bench.server import memory_server
from recollect_bench.timing import Call, Spread, alternate

CONVERSATIONS, HEADS, DIM, ENTRIES, TOP_K = 64, 8, 64, 4096, 32
GOAL = ">= 4"
ON_END = 16
"""Steps of a caller: a conversation lasts, and to start 64 threads takes as long as one step."""

CASES = {
    "call": "one call of 64 rows",
    "at once": f"64 callers of one AsyncClient, {ON_END} steps each",
    "threads": f"64 threads of one Client, {ON_END} steps each",
}


def run(scale: Scale) -> Outcome:
    """64 streams of 4,096 entries x 8 heads: one call for all, and a call of each at once."""
    return Outcome(figures=_figures(scale, direct=False) + _figures(scale, direct=True))


def _figures(scale: Scale, *, direct: bool) -> list[Figure]:
    times, way = _times(scale, direct=direct), ", without gRPC" if direct else ""
    after = times["after"]
    return [
        Figure(
            "conversations",
            f"{case}, {HEADS} heads x {scale.size(ENTRIES):,} x {DIM} each{way}",
            f"{CONVERSATIONS / times[turn].median_s:,.0f} steps/s, {times[turn]}",
            f"one after another {CONVERSATIONS / after.median_s:,.0f} steps/s, {after}",
            ratio=after.median_s / times[turn].median_s,
            goal=GOAL,
        )
        for turn, case in CASES.items()
    ]


def _times(scale: Scale, *, direct: bool) -> dict[str, Spread]:
    entries, names = scale.size(ENTRIES), [f"c{number}" for number in range(CONVERSATIONS)]
    data = datasets.make("subspace", entries=HEADS * entries, queries=CONVERSATIONS * HEADS, seed=scale.seed)
    keys, values = (array.reshape(1, HEADS, entries, DIM) for array in (data.keys, data.values))
    queries = data.queries.reshape(CONVERSATIONS, HEADS, 1, DIM)
    with (
        memory_server() as server,
        recollect.connect(server.unix_url, timeout_s=600, direct=direct) as client,
    ):
        # As stored and sent by default.
        space = namespace(client, "conversations", dim=DIM, heads=HEADS, capacity=entries, dtype="float16")
        for number, name in enumerate(names):
            # Not one conversation's keys are another's.
            space.add(LAYER, np.roll(keys, number, axis=3), values, streams=[name])

        def attend(row: int) -> None:
            space.attend(LAYER, queries[row : row + 1], top_k=TOP_K, streams=[names[row]], with_ids=False)

        def one_after_another() -> None:
            for row in range(CONVERSATIONS):
                attend(row)

        def one_call() -> None:
            space.attend(LAYER, queries, top_k=TOP_K, streams=names, with_ids=False)

        def decode(row: int) -> None:
            for _ in range(ON_END):
                attend(row)

        def by_threads() -> float:
            begun_s = time.perf_counter()
            list(threads.map(decode, range(CONVERSATIONS)))
            return (time.perf_counter() - begun_s) / ON_END

        with asyncio.Runner() as runner, ThreadPoolExecutor(CONVERSATIONS) as threads:
            there = runner.run(_open(server.unix_url, direct=direct))

            def at_once() -> float:
                begun_s = time.perf_counter()
                runner.run(_at_once(there[1], queries, names))
                return (time.perf_counter() - begun_s) / ON_END

            turns: dict[str, Call] = {
                "after": one_after_another,
                "call": one_call,
                "at once": at_once,
                "threads": by_threads,
            }
            times = alternate(turns, rounds=scale.rounds, seconds_max=scale.seconds_max, warm=2)
            runner.run(there[0].close())
    return times


async def _open(url: str, *, direct: bool) -> tuple[recollect.AsyncClient, recollect.AsyncNamespace]:
    client = recollect.connect_async(url, timeout_s=600, direct=direct)
    return client, await client.namespace("conversations")


async def _at_once(space: recollect.AsyncNamespace, queries: datasets.Floats, names: list[str]) -> None:
    async def decode(row: int) -> None:
        for _ in range(ON_END):
            await space.attend(
                LAYER, queries[row : row + 1], top_k=TOP_K, streams=[names[row]], with_ids=False
            )

    await asyncio.gather(*map(decode, range(len(names))))
