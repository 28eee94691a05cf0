"""The report: a page with tables, the same as JSON, and pictures."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from recollect_bench.peers.installed import PEERS, reason_absent
from recollect_bench.result import Figure, Outcome

NAME = "peers"
PACKAGES = ("recollect", "faiss-cpu", "faiss-gpu", "grpcio", "numpy", "torch")
DATA_SETS = """\
Keys and queries have length 1 and 64 dimensions unless a row says otherwise; `recollect_bench/datasets.py`
makes them.

| data set | what it is |
|---|---|
| keys | of the demo's model on Python's source text, as sent to memory (one head, 48 dimensions) |
| mixture | easy: 1,000 Gaussians |
| subspace | 16 dimensions and a little noise |
| anisotropic | a Gaussian with a decaying spectrum |
| sphere | uniform: the worst case |
"""

HOW = """\
Who is compared takes turns in one run. Times are medians; the range beside them holds the middle half.
Peers run in environments of their own (`make bench-peers`), in process, and are timed there, around their
own calls, each searching as hard as a recall of 0.95 needs. Recollect is asked over gRPC on a unix socket
unless a row says otherwise. Recall (ours / theirs) is against exact search by the benchmark itself."""


def page(outcomes: Mapping[str, Outcome], *, command: str, seed: int, pictures: Mapping[str, Path]) -> str:
    """The report in Markdown.

    Args:
        outcomes: By workload.
        command: That made it.
        seed: Of the data.
        pictures: Title -> file, beside the page.
    """
    figures = [figure for outcome in outcomes.values() for figure in outcome.figures]
    judged = [figure for figure in figures if figure.met is not None]
    parts = [
        "# Recollect beside its peers and its limits",
        f"{machine()}\n\n`{command}`, seed {seed}.",
        HOW,
        f"{sum(bool(figure.met) for figure in judged)} of {len(judged)} goals are met.",
        *(_section(name, outcome) for name, outcome in outcomes.items()),
        *(f"## {title}\n\n![{title}]({path.name})" for title, path in pictures.items()),
        f"## Data sets\n\n{DATA_SETS}",
        f"## Peers\n\n{_peers(outcomes)}",
    ]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def as_json(outcomes: Mapping[str, Outcome], *, command: str, seed: int) -> str:
    """Everything that was found."""
    found = {name: outcome.as_dict() for name, outcome in outcomes.items()}
    said = {"machine": machine(), "command": command, "seed": seed, "workloads": found}
    return json.dumps(said, indent=1) + "\n"


def table(figures: list[Figure]) -> str:
    """One line for each figure."""
    head = [
        "| case | Recollect | beside | ratio | goal | recall | limit, remarks |",
        "|---|---|---|---:|---|---|---|",
    ]
    return "\n".join([*head, *(_row(figure) for figure in figures)])


def machine() -> str:
    """One line on what was measured with what."""
    versions = [f"{name} {found}" for name in PACKAGES if (found := _version(name))]
    return (
        f"{os.cpu_count()} cores, {_processor()}, Python {platform.python_version()}, {', '.join(versions)}."
    )


def _section(name: str, outcome: Outcome) -> str:
    lines = [f"## {name}", table(outcome.figures)]
    lines += [f"Not beside it: {peer} ({reason})." for peer, reason in outcome.absent.items()]
    return "\n\n".join(lines)


def _row(figure: Figure) -> str:
    ratio = "" if figure.ratio is None else f"{figure.ratio:.3g}"
    goal = figure.goal if figure.met is None else f"{figure.goal}: {'met' if figure.met else '**missed**'}"
    recall = " / ".join(f"{r:.3f}" for r in (figure.recall, figure.their_recall) if r is not None)
    remarks = "; ".join(part for part in (figure.limit, figure.note) if part)
    cells = (figure.case, figure.ours, figure.theirs, ratio, goal, recall, remarks)
    return f"| {' | '.join(cells)} |"


def _peers(outcomes: Mapping[str, Outcome]) -> str:
    reasons: dict[str, str] = {}
    for outcome in outcomes.values():
        reasons |= outcome.absent
    rows = ["| peer | packages | here | remarks |", "|---|---|---|---|"]
    for name, kind in PEERS.items():
        reason = reason_absent(name) or reasons.get(name)
        packages = ", ".join(kind.packages + kind.bare)
        rows.append(f"| {name} | {packages} | {reason or 'yes'} | {kind.note} |")
    return "\n".join(rows)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
