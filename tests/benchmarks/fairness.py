"""Two tenants on one server: what one's small calls take while the other floods it with the heaviest ones.

    python -m tests.benchmarks.fairness [--seconds 10] [--rounds 3]

In one run and in turn: the small calls alone, then beside each kind of flood; then the same on a server with
the fair queue switched off. Writes docs/benchmarks/fairness.md and .json.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import recollect
from tests.benchmarks import load, reports
from tests.benchmarks.load import DIM, HEADS, LAYER, Load, Times
from tests.installation import Installation
from tests.server_process import ServerProcess

LARGE_ENTRIES = 65_536
IN_FLIGHT = 8
PAUSE_S = 0.002
SETTLE_S = 2.0
GOAL = 3.0
UNFAIR_SECONDS = 4
"""Times as long without the fair queue, where few small calls are answered at all."""


def heavy_attend(namespace: recollect.Namespace) -> Callable[[], object]:
    """4 rows x 8 heads x 1,024 queries over 65,536 entries: 137 thousand million multiply-adds."""
    queries = np.random.default_rng(2).standard_normal((4, HEADS, 1024, DIM), dtype=np.float32)
    return lambda: namespace.attend(LAYER, queries, top_k=32, streams=["a"] * 4)


def heavy_search(namespace: recollect.Namespace) -> Callable[[], object]:
    """Keys and values of 8 heads x 64 queries x 448 neighbours: 56 MiB to fetch."""
    queries = np.random.default_rng(2).standard_normal((1, HEADS, 64, DIM), dtype=np.float32)
    return lambda: namespace.search(LAYER, queries, top_k=448, streams=["a"], include=("keys", "values"))


def heavy_add(namespace: recollect.Namespace) -> Callable[[], object]:
    """30,000 entries of 8 heads: 59 MiB to store."""
    block = np.random.default_rng(2).standard_normal((1, HEADS, 30_000, DIM), dtype=np.float32)
    return lambda: namespace.add(LAYER, block, block, streams=["b"])


FLOODS = {"attend": heavy_attend, "search": heavy_search, "add": heavy_add}


@dataclass(frozen=True)
class Seen:
    """The small calls in one stretch of time.

    Attributes:
        beside: Kind of flood; "" for none.
        p50_ms: Of their time.
        p99_ms: Of their time.
        max_ms: Of their time.
        calls: How many.
        refused: How many were.
        ratio: p99 to that of the stretch alone in the same round.
        flood_calls: Of the flood, answered.
    """

    beside: str
    p50_ms: float
    p99_ms: float
    max_ms: float
    calls: int
    refused: int
    ratio: float
    flood_calls: int = 0


def seen(beside: str, times: Times, *, alone_p99_ms: float | None, flood: Times | None = None) -> Seen:
    """Sums a stretch up."""
    p99_ms = load.quantile_ms(times.ok_s, 0.99)
    return Seen(
        beside=beside,
        p50_ms=load.median_ms(times.ok_s),
        p99_ms=p99_ms,
        max_ms=load.quantile_ms(times.ok_s, 1.0),
        calls=len(times.ok_s),
        refused=len(times.refused_s),
        ratio=p99_ms / (alone_p99_ms or p99_ms),
        flood_calls=len(flood.ok_s) if flood else 0,
    )


def measure(*, fair: bool, seconds: float, rounds: int, kinds: Sequence[str]) -> list[Seen]:
    """All stretches on one server."""
    environment = {"RECOLLECT_FAIR": str(fair).lower()}
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(data_dir=Path(folder, "data"), environment=environment) as server,
        Installation(server) as installation,
    ):
        tokens = {name: installation.tenant(name) for name in ("small", "flood")}
        for name, entries in (("small", load.SMALL_ENTRIES), ("flood", LARGE_ENTRIES)):
            with recollect.connect(server.unix_url, token=tokens[name]) as client:
                load.make_namespace(client, "n", entries=entries)
        small = Load(
            server.unix_url,
            tokens["small"],
            namespace="n",
            make_call=load.small_attend,
            pause_s=PAUSE_S,
        )
        floods = {
            kind: Load(
                server.unix_url,
                tokens["flood"],
                namespace="n",
                make_call=FLOODS[kind],
                threads=IN_FLIGHT,
                is_background=True,
            )
            for kind in kinds
        }
        small.run(1.0)
        stretches: list[Seen] = []
        for _ in range(rounds):
            stretches += one_round(small, floods, seconds=seconds, stretch=1 if fair else UNFAIR_SECONDS)
        for each in (small, *floods.values()):
            each.close()
        return stretches


def one_round(small: Load, floods: dict[str, Load], *, seconds: float, stretch: int) -> list[Seen]:
    """The small calls alone, then beside each flood."""
    alone = seen("", small.run(seconds), alone_p99_ms=None)
    print(alone, flush=True)
    stretches = [alone]
    for kind, flood in floods.items():
        flood.start()
        time.sleep(SETTLE_S)
        times = small.run(seconds * stretch)
        found = seen(kind, times, alone_p99_ms=alone.p99_ms, flood=flood.stop())
        print(found, flush=True)
        stretches.append(found)
        time.sleep(SETTLE_S)
    return stretches


def table(stretches: Sequence[Seen]) -> list[str]:
    """Medians over rounds, a row for each kind."""
    lines = [
        "| small calls | p50 ms | p99 ms | max ms | p99 to p99 alone (rounds) | calls of the flood |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind in dict.fromkeys(each.beside for each in stretches):
        rows = [each for each in stretches if each.beside == kind]

        def middle(name: str, rows: list[Seen] = rows) -> float:
            return statistics.median(float(getattr(each, name)) for each in rows)

        ratios = ", ".join(f"{each.ratio:.2f}" for each in rows)
        name = f"beside a flood of {kind}" if kind else "alone"
        lines.append(
            f"| {name} | {middle('p50_ms'):.2f} | {middle('p99_ms'):.2f} | {middle('max_ms'):.1f} | "
            f"**{middle('ratio'):.2f}** ({ratios}) | {sum(each.flood_calls for each in rows)} |"
        )
    return lines


def report(fair: Sequence[Seen], unfair: Sequence[Seen], *, seconds: float, rounds: int) -> str:
    """The page."""
    return "\n".join(
        [
            "# Two tenants, one of them a flood",
            "",
            f"One tenant makes decoding steps (attend, {HEADS} heads x 1 query, {load.SMALL_ENTRIES:,} entries, "
            f"k={load.SMALL_TOP_K}) one after the other, with {PAUSE_S * 1000:g} ms between two. Another keeps "
            f"{IN_FLIGHT} of the heaviest calls in flight that limits and quotas allow by default, on "
            f"{LARGE_ENTRIES:,} entries:",
            "",
            *(f"- {kind}: {make.__doc__}" for kind, make in FLOODS.items()),
            "",
            f"{rounds} rounds of {seconds:g} s for each row; medians over rounds. Goal: p99 at most {GOAL:g} times "
            "that alone.",
            "",
            "## In fair order",
            "",
            *table(fair),
            "",
            "## First come, first served (`RECOLLECT_FAIR=false`)",
            "",
            *table(unfair),
            "",
            "Server and clients share the machine. The server's searches have one thread; the process of the flood "
            "runs at the lowest priority, since its own work, which would be on another machine, is not what is "
            "measured.",
            "",
            reports.machine(),
            "",
            "Made with `make bench-fairness`. All figures: [fairness.json](fairness.json).",
            "",
        ]
    )


def main() -> None:
    """Measures, and writes the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    fair = measure(fair=True, seconds=options.seconds, rounds=options.rounds, kinds=list(FLOODS))
    unfair = measure(fair=False, seconds=options.seconds, rounds=1, kinds=["attend"])
    page = report(fair, unfair, seconds=options.seconds, rounds=options.rounds)
    rows = {
        "fair": [dataclasses.asdict(each) for each in fair],
        "first_come": [dataclasses.asdict(each) for each in unfair],
    }
    reports.write("fairness", page, rows)


if __name__ == "__main__":
    main()
