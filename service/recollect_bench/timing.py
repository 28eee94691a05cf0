"""Times: who is compared takes turns, and what is reported is a median with its spread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Spread:
    """Some times, in seconds: their median, and the quarter below and above which a quarter of them lie."""

    median_s: float
    low_s: float
    high_s: float
    times: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Of at least one time."""
        low, median, high = np.quantile(np.asarray(seconds, dtype=np.float64), (0.25, 0.5, 0.75))
        return cls(float(median), float(low), float(high), len(seconds))

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.median_s * 1e3:.3g} ms ({self.low_s * 1e3:.3g}-{self.high_s * 1e3:.3g})"


Call = Callable[[], object]
"""Something to time; if it returns a float, it timed itself, in seconds."""


ROUNDS_LEAST = 3
"""Of fewer there is no median."""


def alternate(
    calls: Mapping[str, Call], *, rounds: int, seconds_max: float = 60.0, warm: int = 1
) -> dict[str, Spread]:
    """Calls each in turn, round after round, so that a change of the machine meets all alike.

    Args:
        calls: By name.
        rounds: Each is timed so many times ...
        seconds_max: ... or fewer, if all together have taken this long; at least `ROUNDS_LEAST` times.
        warm: Rounds before, which do not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.perf_counter()
    for number in range(warm + rounds):
        for name, call in calls.items():
            taken = timed(call)
            if number >= warm:
                seconds[name].append(taken)
        if number + 1 >= warm + ROUNDS_LEAST and time.perf_counter() - begun > seconds_max:
            break
    return {name: Spread.of(taken) for name, taken in seconds.items()}


def in_a_row(call: Call, number: int) -> Call:
    """So many of them one after the other, as who does nothing else calls; times one of them, on average."""

    def several() -> float:
        return sum(_taken(call) for _ in range(number)) / number

    return several


SPIN_S = 0.03
"""For so long the threads of libraries look for more work, on cores that the next one needs."""


def timed(call: Call) -> float:
    """How long one call takes, in seconds, once what went before is at rest."""
    time.sleep(SPIN_S)
    return _taken(call)


def _taken(call: Call) -> float:
    begun = time.perf_counter()
    own = call()
    return own if isinstance(own, float) else time.perf_counter() - begun
