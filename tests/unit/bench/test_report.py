"""The report says what was found, and what was not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recollect_bench import pictures, report
from recollect_bench.result import RECALL_PLOT, SIZE_PLOT, Figure, Outcome

FIGURE = Figure(
    "streaming",
    "keys, against usearch",
    "100 steps/s",
    "10 steps/s",
    ratio=10.04,
    goal=">= 5",
    recall=0.961,
    their_recall=0.9704,
    limit="sgemm 20 ms",
    note="remark",
)
MISSED = Figure("memory", "auto", "20 bytes", ratio=20, goal="<= 16")


@pytest.mark.parametrize(
    ("ratio", "goal", "met"),
    [(5, ">= 5", True), (4.9, ">= 5", False), (1.1, "<= 1.15", True), (1.2, "<= 1.15", False)],
)
def test_goals_are_judged(ratio: float, goal: str, met: bool) -> None:
    """A missed goal is reported as met."""
    assert Figure("w", "c", "", ratio=ratio, goal=goal).met is met


def test_without_a_number_nothing_is_met() -> None:
    """A workload that could not be compared counts as a success, or as a failure."""
    assert Figure("w", "c", "", goal=">= 5").met is None
    assert Figure("w", "c", "", ratio=3).met is None


def test_the_table_has_everything() -> None:
    """A figure stands without its recall, its limit or its goal."""
    line = report.table([FIGURE]).splitlines()[-1]
    assert line == (
        "| keys, against usearch | 100 steps/s | 10 steps/s | 10 | >= 5: met | 0.961 / 0.970 "
        "| sgemm 20 ms; remark |"
    )
    assert "| 20 | <= 16: **missed** |" in report.table([MISSED])


def test_the_page_says_who_is_absent_and_how_to_repeat() -> None:
    """A peer was dropped without a word, or nobody can run the same again."""
    outcomes = {
        "streaming": Outcome(figures=[FIGURE], absent={"usearch": "no wheel"}),
        "memory": Outcome([MISSED]),
    }
    page = report.page(
        outcomes, command="recollect bench", seed=7, pictures={"Cost against size": Path("x/peers-size.png")}
    )
    assert "Not beside it: usearch (no wheel)." in page
    assert "`recollect bench`, seed 7" in page
    assert "1 of 2 goals are met" in page
    assert "![Cost against size](peers-size.png)" in page
    assert "faiss-cpu" in page
    found = json.loads(report.as_json(outcomes, command="recollect bench", seed=7))
    assert found["seed"] == 7
    assert found["workloads"]["streaming"]["absent"] == {"usearch": "no wheel"}
    assert found["workloads"]["memory"]["figures"][0]["met"] is False


def test_curves_are_drawn_by_kind(tmp_path: Path) -> None:
    """The pictures of the report are missing or mixed up."""
    series = {
        f"{SIZE_PLOT}sphere": {"auto": [(4096.0, 1.0), (65536.0, 3.0)]},
        f"{RECALL_PLOT}sphere": {"usearch": [(0.9, 1.0), (0.99, 2.0)]},
    }
    drawn = pictures.draw({"w": Outcome(series=series)}, tmp_path, "peers")
    assert {title: path.name for title, path in drawn.items()} == {
        "Cost against size": "peers-size.png",
        "Time against recall": "peers-recall.png",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn.values())
    assert pictures.draw({"w": Outcome()}, tmp_path, "none") == {}
