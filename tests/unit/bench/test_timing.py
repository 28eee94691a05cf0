"""Medians, spreads and turns."""

from __future__ import annotations

from recollect_bench.timing import Spread, alternate


def test_a_spread_is_median_and_quartiles() -> None:
    """One slow call moves the figure, or the range is not the middle half."""
    spread = Spread.of([0.004, 0.001, 0.002, 0.003, 10.0])
    assert (spread.median_s, spread.low_s, spread.high_s, spread.times) == (0.003, 0.002, 0.004, 5)
    assert str(spread) == "3 ms (2-4)"


def test_turns_are_taken_and_warm_rounds_do_not_count() -> None:
    """One is measured after the other, so that a change of the machine meets one of them alone."""
    order: list[str] = []

    def call(name: str, seconds: float) -> float:
        order.append(name)
        return seconds if len(order) > 4 else 99.0

    spreads = alternate({"a": lambda: call("a", 1.0), "b": lambda: call("b", 2.0)}, rounds=3, warm=2)
    assert order == ["a", "b"] * 5
    assert spreads["a"] == Spread(1.0, 1.0, 1.0, 3)
    assert spreads["b"].median_s == 2.0


def test_what_takes_too_long_is_measured_a_few_times() -> None:
    """A slow peer holds up the whole benchmark, or is not measured at all."""
    assert alternate({"a": lambda: 1.0}, rounds=1000, seconds_max=0.0, warm=0)["a"].times == 3
    assert alternate({"a": lambda: 1.0}, rounds=2, seconds_max=0.0, warm=1)["a"].times == 2


def test_a_call_that_times_itself_is_believed() -> None:
    """A peer's time includes the way to its process."""
    assert alternate({"a": lambda: 123.0, "b": lambda: None}, rounds=1)["a"].median_s == 123.0
    assert 0 <= alternate({"b": lambda: None}, rounds=1)["b"].median_s < 100
