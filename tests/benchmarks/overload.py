"""Ten times what a server can do, for a minute: what refusals take, whether accepted calls keep their deadline.

    python -m tests.benchmarks.overload [--seconds 60] [--factor 10]

Measures what the server can do, offers so many times as much at a fixed rate, and then asks again what it can
do. All in one process, on loopback. Writes docs/benchmarks/overload.md and .json.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

import numpy as np
import psutil

import recollect
from tests.benchmarks import load, reports
from tests.benchmarks.load import DIM, HEADS, LAYER
from tests.installation import Installation
from tests.server_process import ServerProcess

TENANTS, ENTRIES, QUERIES, TOP_K = 10, 16_384, 64, 32
DEADLINE_S = 1.0
WORKERS = 8
"""Calls in flight while the server's speed is measured: enough to keep the device busy."""
CAPACITY_S, AFTER_S, WINDOW_S = 10.0, 6.0, 0.5
CALLS_MAX = 100_000
REFUSED_GOAL_MS, RECOVERED_GOAL_S, RECOVERED_SHARE = 50, 2, 0.9
MIB = 1024**2

Ask = Callable[[], Awaitable[object]]


@dataclass
class Offered:
    """What became of the calls that were offered.

    Attributes:
        ok_s: Time of each that was answered.
        refused_s: Time of each that was refused before it began.
        late: That were accepted and missed their deadline.
        reasons: Of those refused.
        lag_s: By how much the generator itself was late with each call.
    """

    ok_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    late: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    lag_s: list[float] = field(default_factory=list)

    async def make(self, ask: Ask) -> None:
        """One call, and what became of it."""
        begun_s = time.perf_counter()
        try:
            await ask()
        except recollect.DeadlineExceededError:
            self.late += 1
        except recollect.RecollectError as error:
            self.refused_s.append(time.perf_counter() - begun_s)
            self.reasons[error.reason] += 1
        else:
            self.ok_s.append(time.perf_counter() - begun_s)


async def offer(asks: Sequence[Ask], *, rate: float, seconds: float) -> Offered:
    """Calls at a fixed rate, whatever becomes of those before; each tenant in its turn."""
    offered, tasks = Offered(), set[asyncio.Task[None]]()
    begun_s = time.perf_counter()
    for number in range(min(CALLS_MAX, int(rate * seconds))):
        due_s = begun_s + number / rate
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        offered.lag_s.append(time.perf_counter() - due_s)
        task = asyncio.create_task(offered.make(asks[number % len(asks)]))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return offered


async def speed(asks: Sequence[Ask], *, seconds: float) -> list[float]:
    """When each call ended, in seconds from the start: `WORKERS` calls in flight without pause."""
    ended_s: list[float] = []
    begun_s = time.perf_counter()

    async def work(ask: Ask) -> None:
        while time.perf_counter() - begun_s < seconds:
            try:
                await ask()
            except recollect.RecollectError:
                await asyncio.sleep(0.01)
            else:
                ended_s.append(time.perf_counter() - begun_s)

    await asyncio.gather(*(work(asks[number % len(asks)]) for number in range(WORKERS)))
    return ended_s


def windows(ended_s: Sequence[float], *, seconds: float) -> list[float]:
    """Calls per second in each window."""
    counts, _ = np.histogram(ended_s, bins=np.arange(0, seconds + 1e-9, WINDOW_S))
    return [float(count) / WINDOW_S for count in counts]


@contextmanager
def watched(server: ServerProcess) -> Iterator[list[int]]:
    """Resident bytes of the server, twice a second."""
    process, seen, stop = psutil.Process(server.process.pid), list[int](), Event()

    def look() -> None:
        while not stop.wait(WINDOW_S):
            seen.append(process.memory_info().rss)

    thread = Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


async def connected(server: ServerProcess, tokens: Sequence[str]) -> list[Ask]:
    """A call for each tenant."""
    queries = np.random.default_rng(3).standard_normal((1, HEADS, QUERIES, DIM), dtype=np.float32)

    async def ask_of(token: str) -> Ask:
        client = recollect.connect_async(server.unix_url, token=token, retries=0, timeout_s=DEADLINE_S)
        namespace = await client.namespace("n")

        async def ask() -> object:
            return await namespace.attend(LAYER, queries, top_k=TOP_K, streams=["a"])

        return ask

    return [await ask_of(token) for token in tokens]


@dataclass(frozen=True)
class Run:
    """All figures of one run."""

    capacity: float
    offered_rate: float
    offered: int
    ok: int
    late: int
    refused: int
    reasons: dict[str, int]
    refused_p50_ms: float
    refused_p99_ms: float
    refused_max_ms: float
    ok_p50_ms: float
    ok_p99_ms: float
    lag_p99_ms: float
    rss_before_mib: float
    rss_max_mib: float
    rss_end_mib: float
    after: list[float]


def recovered_s(run: Run) -> float:
    """When the first window after the overload ended in which the server was as fast as before."""
    for number, rate in enumerate(run.after, 1):
        if rate >= RECOVERED_SHARE * run.capacity:
            return number * WINDOW_S
    return float("inf")


async def run_all(server: ServerProcess, tokens: Sequence[str], *, factor: float, seconds: float) -> Run:
    """Before, the overload, and after."""
    asks = await connected(server, tokens)
    await speed(asks, seconds=2)
    before = await speed(asks, seconds=CAPACITY_S)
    capacity = len(before) / CAPACITY_S
    rss_before = psutil.Process(server.process.pid).memory_info().rss
    with watched(server) as rss:
        offered = await offer(asks, rate=factor * capacity, seconds=seconds)
        after = windows(await speed(asks, seconds=AFTER_S), seconds=AFTER_S)
    return Run(
        capacity=capacity,
        offered_rate=factor * capacity,
        offered=len(offered.lag_s),
        ok=len(offered.ok_s),
        late=offered.late,
        refused=len(offered.refused_s),
        reasons=dict(offered.reasons),
        refused_p50_ms=load.median_ms(offered.refused_s),
        refused_p99_ms=load.quantile_ms(offered.refused_s, 0.99),
        refused_max_ms=load.quantile_ms(offered.refused_s, 1.0),
        ok_p50_ms=load.median_ms(offered.ok_s),
        ok_p99_ms=load.quantile_ms(offered.ok_s, 0.99),
        lag_p99_ms=load.quantile_ms(offered.lag_s, 0.99),
        rss_before_mib=rss_before / MIB,
        rss_max_mib=max(rss) / MIB,
        rss_end_mib=rss[-1] / MIB,
        after=after,
    )


def report(run: Run, *, factor: float, seconds: float) -> str:
    """The page."""
    shares = ", ".join(f"{rate / run.capacity:.2f}" for rate in run.after)
    return f"""# Overload

{TENANTS} tenants ask for attention ({HEADS} heads x {QUERIES} queries over {ENTRIES:,} entries, k={TOP_K}) with a deadline
of {DEADLINE_S:g} s. First {WORKERS} calls in flight without pause, which is what the server can do; then {factor:g} times as
many at a fixed rate for {seconds:g} s, whatever becomes of them; then {WORKERS} in flight again. No client tries again.

| | |
|---|---:|
| what the server can do | {run.capacity:.1f} calls/s |
| offered | {run.offered_rate:.0f} calls/s, {run.offered:,} in all |
| answered | {run.ok:,}, {run.ok / seconds:.1f} calls/s: {run.ok / seconds / run.capacity:.0%} of what it can do |
| **accepted, and late** | **{run.late:,}**, {run.late / max(1, run.ok + run.late):.2%} of those accepted |
| refused | {run.refused:,} ({", ".join(f"{name} {count:,}" for name, count in sorted(run.reasons.items()))}) |
| **a refusal took** (goal: under {REFUSED_GOAL_MS} ms) | p50 {run.refused_p50_ms:.1f} ms, **p99 {run.refused_p99_ms:.1f} ms**, max {run.refused_max_ms:.1f} ms |
| an answer took | p50 {run.ok_p50_ms:.0f} ms, p99 {run.ok_p99_ms:.0f} ms |
| memory of the server | {run.rss_before_mib:.0f} MiB before, {run.rss_max_mib:.0f} MiB at most, {run.rss_end_mib:.0f} MiB after |
| **as fast as before** ({RECOVERED_SHARE:.0%}; goal: within {RECOVERED_GOAL_S} s) | **{recovered_s(run):.1f} s** after the last call |

Speed after the overload, in windows of {WINDOW_S:g} s, as a share of that before: {shares}.

The generator shares the two cores with the server; it was itself late by {run.lag_p99_ms:.1f} ms (p99) with a call, and what it
waits for its own turn counts as time of the call. The server's searches have one thread.

{reports.machine()}

Made with `make bench-overload`. All figures: [overload.json](overload.json).
"""


def main() -> None:
    """Measures, and writes the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--factor", type=float, default=10)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(data_dir=Path(folder, "data")) as server,
        Installation(server) as installation,
    ):
        tokens = [installation.tenant(f"t{number}") for number in range(TENANTS)]
        for token in tokens:
            with recollect.connect(server.unix_url, token=token) as client:
                load.make_namespace(client, "n", entries=ENTRIES)
        run = asyncio.run(run_all(server, tokens, factor=options.factor, seconds=options.seconds))
    page = report(run, factor=options.factor, seconds=options.seconds)
    reports.write("overload", page, dataclasses.asdict(run))


if __name__ == "__main__":
    main()
