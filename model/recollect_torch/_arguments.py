"""Checks of what a session is given. Each refusal names the argument, what it must be and what came."""

from __future__ import annotations

from collections.abc import Sequence


def check_choice(argument: str, came: str | None, choices: tuple[str | None, ...]) -> None:
    """Refuses an option that is not one of the choices."""
    if came not in choices:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, choices))}; got {came!r}")


def check_streams(streams: Sequence[str]) -> tuple[str, ...]:
    """One stream per batch row, all different."""
    if isinstance(streams, str):
        raise ValueError(f"streams must be a list of names, one per batch row; got the string {streams!r}")
    names = tuple(streams)
    if not names:
        raise ValueError("streams must name one stream per batch row; got none")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"streams must all be different; {twice} are named more than once")
    return names


def check_rows(rows: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Batch rows, all different; None for all."""
    if rows is None:
        return tuple(range(count))
    checked = tuple(int(row) for row in rows)
    if len(set(checked)) < len(checked) or any(not 0 <= row < count for row in checked):
        raise ValueError(f"rows must be different numbers from 0 to {count - 1}; got {list(checked)}")
    return checked


def check_moves(before: tuple[str, ...], rows: tuple[int, ...], streams: Sequence[str]) -> tuple[str, ...]:
    """The streams after some rows went over to others."""
    if len(streams) != len(rows):
        raise ValueError(f"streams must name one stream per row in rows ({len(rows)}); got {list(streams)}")
    after = dict(enumerate(before)) | dict(zip(rows, streams, strict=True))
    return check_streams(tuple(after.values()))
