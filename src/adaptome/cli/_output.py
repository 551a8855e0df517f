"""What the commands share for showing results: a table for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on stdout, and nothing else.")
]


def print_json(result: Any) -> None:
    """Print `result` as JSON, indented, keys as they come; NaN and infinity are refused (ValueError)."""
    print(json.dumps(result, indent=2, allow_nan=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """Print rows under their column names; numbers stand to the right with thousands separators.

    Args:
        columns: the heading of each column.
        rows: as many cells per row as there are columns; a cell is shown by `str`, integers as 1,234.
        title: a line above the table.
    """
    from rich.console import Console
    from rich.table import Table

    rows = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", no_wrap=numeric or index == 0)
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console = Console(markup=False, highlight=False, soft_wrap=False)
    if title:  # not rich's own title, which is broken at the table's width
        console.print(title, style="italic", soft_wrap=True)
    console.print(table)


def apart(metrics: Mapping[str, float]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Metrics of the whole, and those of its parts: `auroc@dfdc` is that of the part dfdc."""
    parts: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        kind, at, part = name.partition("@")
        if at:
            parts.setdefault(part, {})[kind] = value
    return {name: value for name, value in metrics.items() if "@" not in name}, parts


def print_parts(metrics: Mapping[str, float]) -> None:
    """A row for each part (a data set of several, ...) and one for their mean; nothing where there are no parts."""
    whole, parts = apart(metrics)
    if not parts:
        return
    kinds = list(next(iter(parts.values())))
    rows = [(name, *(f"{found[kind]:.4f}" for kind in kinds)) for name, found in parts.items()]
    print_table(("", *kinds), [*rows, ("mean", *(f"{whole[kind]:.4f}" for kind in kinds))])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
