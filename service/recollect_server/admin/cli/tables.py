"""What commands print: JSON for programs, aligned columns for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import typer

from recollect_server.admin.cli.api import Api, Json

GAP = "  "


def show_many(api: Api, items: Sequence[Json], columns: Sequence[str]) -> None:
    """A list: a JSON array, or a table with these members of the items for columns."""
    if api.as_json:
        typer.echo(json.dumps(items, indent=2))
        return
    rows = [[_cell(name, item.get(name)) for name in columns] for item in items]
    _print([[_heading(name) for name in columns], *rows])


def show_one(api: Api, item: Mapping[str, object]) -> None:
    """An object: as JSON, or a line for each of its members; an object within shows its own."""
    if api.as_json:
        typer.echo(json.dumps(item, indent=2))
        return
    rows = []
    for name, value in item.items():
        inner = value if isinstance(value, Mapping) else {name: value}
        rows += [[_heading(key), _cell(key, each)] for key, each in inner.items()]
    _print(rows)


def _print(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo(GAP.join(cells).rstrip())


def _heading(name: str) -> str:
    return name.removesuffix("_at_ms").removesuffix("_ms").replace("_", " ").upper()


def _cell(name: str, value: object) -> str:
    if value is None or value in ("", []):
        return "-"
    if name.endswith("at_ms") and isinstance(value, int):
        try:
            return datetime.fromtimestamp(value / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        except (ValueError, OverflowError):
            return str(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ",".join(map(str, value))
    text = str(value)
    # Labels and names come from others: what would move the cursor is shown as what it is.
    return text if text.isprintable() else repr(text)
