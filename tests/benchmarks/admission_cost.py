"""What keys and the fair queue cost a small attend: two servers, with and without, asked in turn.

    python -m tests.benchmarks.admission_cost [--calls 4000]

Writes docs/benchmarks/admission-cost.md and .json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

import recollect
from tests.benchmarks import load, reports
from tests.benchmarks.load import HEADS, SMALL_ENTRIES, SMALL_TOP_K
from tests.installation import Installation
from tests.server_process import ServerProcess

BLOCK = 20
"""Calls to one server before it is the other's turn: long enough that both are warm, short enough that both
see the same machine."""
GOAL = 0.10

Call = Callable[[], object]


def servers(stack: ExitStack) -> tuple[Call, Call]:
    """A small attend at a server without keys and queue, and at one with both."""
    plain = stack.enter_context(ServerProcess(environment={"RECOLLECT_FAIR": "false"}))
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    full = stack.enter_context(ServerProcess(data_dir=Path(folder, "data")))
    installation = stack.enter_context(Installation(full))
    tokens = {plain.unix_url: None, full.unix_url: installation.tenant("acme")}
    calls = []
    for url, token in tokens.items():
        client = stack.enter_context(recollect.connect(url, token=token, retries=0))
        calls.append(load.small_attend(load.make_namespace(client, "n", entries=SMALL_ENTRIES)))
    return calls[0], calls[1]


def timed(call: Call) -> list[float]:
    """Seconds of each call of a block."""
    times = []
    for _ in range(BLOCK):
        begun_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun_s)
    return times


def main() -> None:
    """Measures, and writes the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--calls", type=int, default=4000, help="to each server")
    options = parser.parse_args()
    without: list[list[float]] = []
    with_both: list[list[float]] = []
    with ExitStack() as stack:
        plain, full = servers(stack)
        for call in (plain, full):
            for _ in range(10):
                timed(call)
        for number in range(options.calls // BLOCK):
            pair = [(plain, without), (full, with_both)]
            for call, times in pair if number % 2 else reversed(pair):
                times.append(timed(call))
    ratios = [statistics.median(b) / statistics.median(a) for a, b in zip(without, with_both, strict=True)]
    flat = [np.ravel(np.array(times)) * 1000 for times in (without, with_both)]
    figures = {
        "calls": len(flat[0]),
        "without_ms": {"p50": float(np.median(flat[0])), "p99": float(np.quantile(flat[0], 0.99))},
        "with_ms": {"p50": float(np.median(flat[1])), "p99": float(np.quantile(flat[1], 0.99))},
        "block_ratio": {
            "median": statistics.median(ratios),
            "quarter": float(np.quantile(ratios, 0.25)),
            "three_quarters": float(np.quantile(ratios, 0.75)),
        },
    }
    reports.write("admission-cost", report(figures), figures)


def report(figures: Mapping[str, object]) -> str:
    """The page."""
    without, with_both, ratio = (figures[name] for name in ("without_ms", "with_ms", "block_ratio"))
    assert isinstance(without, dict)
    assert isinstance(with_both, dict)
    assert isinstance(ratio, dict)
    return f"""# What keys and fair order cost a small call

One decoding step (attend, {HEADS} heads x 1 query, {SMALL_ENTRIES:,} entries, k={SMALL_TOP_K}) over a unix socket, one after
the other, at two servers in turn, {BLOCK} calls each, {figures["calls"]:,} to each in all: one with `--dev` and
`RECOLLECT_FAIR=false` (no key, no fair queue), one with keys in a registry and the fair queue. Both count calls in
flight and tell their metrics.

| server | p50 ms | p99 ms |
|---|---:|---:|
| without | {without["p50"]:.3f} | {without["p99"]:.3f} |
| with both | {with_both["p50"]:.3f} | {with_both["p99"]:.3f} |

With both, a call takes **{ratio["median"]:.3f}** times as long (median of the blocks' ratios of medians; middle half
{ratio["quarter"]:.3f} to {ratio["three_quarters"]:.3f}). Goal: at most {1 + GOAL:.2f}.

{reports.machine()}

Made with `make bench-admission`. All figures: [admission-cost.json](admission-cost.json).
"""


if __name__ == "__main__":
    main()
