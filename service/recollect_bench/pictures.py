"""Curves of the report: cost against size, and time against recall."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from recollect_bench.result import RECALL_PLOT, SIZE_PLOT, Line, Outcome

COLUMNS = 4
TITLES = {SIZE_PLOT: "Cost against size", RECALL_PLOT: "Time against recall"}


def draw(outcomes: Mapping[str, Outcome], folder: Path, name: str) -> dict[str, Path]:
    """Draws all curves.

    Args:
        outcomes: By workload.
        folder: For the files.
        name: Beginning of their names.

    Returns:
        Title -> file; empty if there are no curves.
    """
    pictures = {}
    for kind, title in TITLES.items():
        panels = {
            panel.removeprefix(kind): lines
            for outcome in outcomes.values()
            for panel, lines in outcome.series.items()
            if panel.startswith(kind)
        }
        if panels:
            path = folder / f"{name}-{kind.strip(': ')}.png"
            _grid(panels, kind, path)
            pictures[title] = path
    return pictures


def _grid(panels: Mapping[str, Mapping[str, Line]], kind: str, path: Path) -> None:
    columns = min(COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 3.2 * rows), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=False):
        _panel(axis, title, lines, kind)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _panel(axis: Axes, title: str, lines: Mapping[str, Line], kind: str) -> None:
    for label, points in lines.items():
        ordered = sorted(points)
        axis.plot([x for x, _ in ordered], [y for _, y in ordered], "o-", markersize=3, label=label)
    axis.set_title(title, fontsize=9)
    axis.set_yscale("log")
    if kind == SIZE_PLOT:
        axis.set_xscale("log", base=2)
    axis.set_xlabel("entries" if kind == SIZE_PLOT else "recall", fontsize=8)
    axis.set_ylabel("ms", fontsize=8)
    axis.grid(visible=True, alpha=0.3)
    axis.legend(fontsize=7)
