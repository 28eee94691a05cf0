"""When a GPU's banks get inverted files."""

from __future__ import annotations

from dataclasses import dataclass

EXACT, IVF, AUTO = "exact", "ivf", "auto"


@dataclass(frozen=True, slots=True)
class IndexRule:
    """What a namespace asks for.

    Attributes:
        index: "exact", "ivf" (from `entries_min` on) or "auto" (from `auto_entries_min` on).
        recall: To be held by the inverted file, from 0 to 1.
        entries_min: With fewer entries training has too little to go by.
        auto_entries_min: With fewer, exact search of a GPU is taken to be fast enough. Not measured.
    """

    index: str = AUTO
    recall: float = 0.95
    entries_min: int = 4096
    auto_entries_min: int = 131_072

    @property
    def entries_least(self) -> int:
        """With fewer entries there is no inverted file."""
        return self.entries_min if self.index == IVF else max(self.entries_min, self.auto_entries_min)
