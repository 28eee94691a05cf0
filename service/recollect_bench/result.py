"""What a workload found: figures beside their goals, recall, limits and peers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

SIZE_PLOT, RECALL_PLOT = "size: ", "recall: "
"""What the name of a plot begins with: milliseconds against entries, or against recall."""

Line = list[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report.

    Attributes:
        workload: Name of the workload.
        case: Data set, size or whatever else varies in it.
        ours: The figure, with its unit and spread.
        theirs: What it is compared with, likewise; empty where there is nothing.
        ratio: The number that has a goal; None where none could be taken.
        goal: What the number should be, as in ">= 10".
        recall: Ours, where there is one.
        their_recall: Of what it is compared with.
        limit: What the hardware allows, measured in the same run.
        note: Whatever has to be known to read it.
    """

    workload: str
    case: str
    ours: str
    theirs: str = ""
    ratio: float | None = None
    goal: str = ""
    recall: float | None = None
    their_recall: float | None = None
    limit: str = ""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None where there is no goal or no number."""
        if self.ratio is None or not self.goal:
            return None
        sign, number = self.goal.split()
        return self.ratio >= float(number) if sign == ">=" else self.ratio <= float(number)


@dataclass(slots=True)
class Outcome:
    """All that a workload found.

    Attributes:
        figures: Lines of the report.
        series: Curves to plot: name of a plot -> name of a line -> points (x, y).
        absent: Peers that took no part, with the reason.
        raw: Whatever else belongs into the JSON.
    """

    figures: list[Figure] = field(default_factory=list)
    series: dict[str, dict[str, Line]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    raw: dict[str, object] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        figures = [{**asdict(figure), "met": figure.met} for figure in self.figures]
        return {"figures": figures, "series": self.series, "absent": self.absent, "raw": self.raw}
