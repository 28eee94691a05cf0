"""How much the memory helps, and how much of that is chance: the demo with several seeds, as one report.

    python -m tests.benchmarks.quality --name demo -- --minutes 4.5

runs `recollect demo` once for each seed with the arguments behind `--`, and writes
docs/benchmarks/quality-NAME.md, .png (of the first seed) and .json (everything).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from tests.benchmarks import reports


class Run(TypedDict):
    """What the report needs of a demo's JSON."""

    seed: int
    steps: int
    control: float
    without: float
    with_memory: dict[str, float]
    bytes_read: int
    documents: list[str]


def demo(seed: int, arguments: Sequence[str], folder: Path) -> Run:
    """Runs the demo with one seed; takes the figures of an earlier run if they are there."""
    out = folder / f"seed-{seed}"
    command = [sys.executable, "-m", "recollect", "demo", "--seed", str(seed), "--out", str(out), *arguments]
    if not (out / "demo.json").exists():
        subprocess.run(command, check=True)
    found = json.loads((out / "demo.json").read_text())
    control = found["control"]
    return Run(
        seed=seed,
        steps=found["steps"],
        control=control["bits_per_byte"],
        without=found["without"]["bits_per_byte"],
        with_memory={size: score["bits_per_byte"] for size, score in found["with_memory"].items()},
        bytes_read=control["segments"] * found["segment_bytes"] * len(control["by_document"]),
        documents=list(control["by_document"]),
    )


def report(name: str, arguments: Sequence[str], runs: Sequence[Run]) -> str:
    """The runs as a page of Markdown."""
    sizes = list(runs[0]["with_memory"])
    head = ["seed", "steps", "control", "no memory", *(f"{int(s):,}" for s in sizes), "gain"]
    lines = [f"# Quality: {name}", "", f"    recollect demo --seed SEED {' '.join(arguments)}".rstrip(), ""]
    lines += [
        f"Bits per byte on held-out text ({runs[0]['bytes_read']:,} bytes), the beginnings of",
        f"{', '.join(runs[0]['documents'])}.",
        "`control` had the same steps, data and seed without memory. The other columns are one model,",
        "trained with memory and read with none and with memories of growing size. `gain`: the largest",
        "memory against the control.",
        "",
        f"| {' | '.join(head)} |",
        f"|{'---:|' * len(head)}",
    ]
    gains = []
    for run in runs:
        bits = [run["control"], run["without"], *(run["with_memory"][s] for s in sizes)]
        gains.append(1 - bits[-1] / bits[0])
        cells = [str(run["seed"]), str(run["steps"]), *(f"{b:.4f}" for b in bits), f"{gains[-1]:.1%}"]
        lines.append(f"| {' | '.join(cells)} |")
    spread = f", from {min(gains):.1%} to {max(gains):.1%}" if len(gains) > 1 else ""
    monotone = all(
        bits == sorted(bits, reverse=True)
        for bits in ([run["without"], *(run["with_memory"][s] for s in sizes)] for run in runs)
    )
    lines += [
        "",
        f"Median gain {statistics.median(gains):.1%}{spread}.",
        f"Fewer bits with every larger memory in every run: {'yes' if monotone else 'no'}.",
        "",
        f"![bits per byte against memory size](quality-{name}.png)",
        "",
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}. All figures: "
        f"[quality-{name}.json](quality-{name}.json).",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the seeds and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--name", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("arguments", nargs="*", help="for `recollect demo`, behind --")
    options = parser.parse_args()
    folder = Path("runs") / f"quality-{options.name}"
    runs = [demo(seed, options.arguments, folder) for seed in options.seeds]
    name = f"quality-{options.name}"
    reports.write(name, report(options.name, options.arguments, runs), runs)
    shutil.copy(folder / f"seed-{options.seeds[0]}" / "demo.png", reports.REPORTS / f"{name}.png")


if __name__ == "__main__":
    main()
