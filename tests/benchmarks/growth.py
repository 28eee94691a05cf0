"""Two tenants on one server: what one's small calls take while the other's bank outgrows its buffers.

    python -m tests.benchmarks.growth [--entries 2200000]

The other one adds in batches of 8,192 entries of 64 elements in float16; buffers double at powers of two. Writes
docs/benchmarks/growth.md and .json.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import recollect
from tests.benchmarks import load, reports
from tests.benchmarks.load import DIM, LAYER, Load, Times
from tests.installation import Installation
from tests.server_process import ServerProcess

BATCH, CAPACITY = 8192, 4_194_304
PAUSE_S = 0.002
ALONE_S = 5.0
LARGEST = 3


def grow(client: recollect.Client, entries: int) -> list[float]:
    """Adds so many; seconds of each batch."""
    namespace = client.create_namespace(
        "growing", layers=[LAYER], heads=1, key_dim=DIM, value_dim=DIM, capacity=CAPACITY
    )
    block = np.random.default_rng(0).standard_normal((1, 1, BATCH, DIM)).astype(np.float16)
    seconds = []
    for _ in range(entries // BATCH):
        begun_s = time.perf_counter()
        namespace.add(LAYER, block, block, streams=["a"])
        seconds.append(time.perf_counter() - begun_s)
    return seconds


def measure(entries: int) -> tuple[Times, Times, list[float]]:
    """The small calls alone and beside the adds, and these."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ServerProcess(data_dir=Path(folder, "data")) as server,
        Installation(server) as installation,
    ):
        small_token, large_token = (installation.tenant(name) for name in ("small", "large"))
        with recollect.connect(server.unix_url, token=small_token) as client:
            load.make_namespace(client, "n", entries=load.SMALL_ENTRIES)
        small = Load(
            server.unix_url, small_token, namespace="n", make_call=load.small_attend, pause_s=PAUSE_S
        )
        small.run(1.0)
        alone = small.run(ALONE_S)
        with recollect.connect(server.unix_url, token=large_token) as client:
            small.start()
            adds_s = grow(client, entries)
            beside = small.stop()
        small.close()
    return alone, beside, adds_s


def report(alone: Times, beside: Times, adds_s: list[float]) -> str:
    """The page."""
    rows = [
        f"| {name} | {load.median_ms(times.ok_s):.1f} | {load.quantile_ms(times.ok_s, 0.99):.1f} | "
        f"{max(times.ok_s) * 1000:.1f} | {len(times.ok_s)} | {len(times.refused_s)} |"
        for name, times in (("alone", alone), ("beside the adds", beside))
    ]
    largest = ", ".join(f"{seconds * 1000:.0f}" for seconds in sorted(adds_s)[-LARGEST:])
    return "\n".join(
        (
            "# A tenant beside one whose bank grows",
            "",
            f"One tenant makes decoding steps one after the other, {PAUSE_S * 1000:g} ms between two. Another fills a "
            f"bank with {len(adds_s) * BATCH:,} entries of {DIM} elements in float16, {BATCH:,} at a time; its buffers "
            "double at each power of two, where they lie once they are large: "
            "[ADR 30](../adr/0030-large-buffers-grow-where-they-lie.md). Why the first one can go on meanwhile: "
            "[ADR 10](../adr/0010-fair-order.md).",
            "",
            "| small calls | median, ms | p99, ms | slowest, ms | calls | refused |",
            "|---|---:|---:|---:|---:|---:|",
            *rows,
            "",
            f"The adds took {load.median_ms(adds_s):.1f} ms (median), the largest {largest} ms: those at which buffers "
            "doubled.",
            "",
            reports.machine(),
            "",
            "Made with `make bench-growth`. All figures: [growth.json](growth.json).",
            "",
        )
    )


def main() -> None:
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=2_200_000)
    alone, beside, adds_s = measure(parser.parse_args().entries)
    figures = {"alone_s": alone.ok_s, "beside_s": beside.ok_s, "adds_s": adds_s}
    reports.write("growth", report(alone, beside, adds_s), figures)


if __name__ == "__main__":
    main()
