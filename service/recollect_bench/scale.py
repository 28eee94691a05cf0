"""How much of a workload is run: whole, quick (seconds), or tiny (for tests)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scale:
    """What the user asked for.

    Attributes:
        data: Data sets; empty: all.
        peers: Names of peers; empty: none.
        seed: Of all data.
        rounds: Of each measurement.
        seconds_max: Of each measurement.
        shrink: Sizes are divided by this.
    """

    data: tuple[str, ...] = ()
    peers: tuple[str, ...] = ("usearch", "lucidrains")
    seed: int = 0
    rounds: int = 15
    seconds_max: float = 20.0
    shrink: int = 1

    def size(self, number: int, *, least: int = 64) -> int:
        """A size, made smaller where this is not the whole benchmark."""
        return max(least, number // self.shrink)
