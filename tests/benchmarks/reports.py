"""Where reports of benchmarks go, and what they say of the machine."""

from __future__ import annotations

import json
from pathlib import Path

from recollect_bench import report

REPORTS = Path(__file__).parents[2] / "docs" / "benchmarks"


def machine() -> str:
    """One line on what was measured with what."""
    return f"{report.machine()} Shared with others: ratios hold better than times."


def write(name: str, page: str, figures: object) -> None:
    """Writes a page and its figures, and shows the page."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / f"{name}.md").write_text(page)
    (REPORTS / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(page)
