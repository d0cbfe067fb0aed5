"""What the terminal shows of a comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sinkscope.explain import GROUPS, Line, is_changed, side_by_side, transitions
from sinkscope.report import NONE, cell_text, change_text, share

if TYPE_CHECKING:
    from sinkscope._compare import Comparison

SHOWN = 8
"""Heads that are listed, those whose sink's mass changes most."""


def comparison_lines(comparison: Comparison) -> str:
    """Titles, notes, the table of all numbers, how heads have changed, and a few sentences."""
    letters = [model["letter"] for model in comparison.facts["models"]]
    lines = side_by_side(comparison.measures, len(letters))
    parts = [comparison.summary(), _table(lines, letters)]
    for number, letter in enumerate(letters[1:], 1):
        parts += _changes(comparison, number, letter)
    return "\n\n".join(parts)


def comparison_records(comparison: Comparison) -> dict[str, Any]:
    """The same as plain values."""

    def records(frame: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(frame.to_json(orient="records", double_precision=8))
        return found

    return {
        "out": str(comparison.path),
        **comparison.facts,
        "measures": records(comparison.measures),
        "transitions": records(comparison.transitions),
        "changed_heads": records(comparison.heads[is_changed(comparison.heads)]),
    }


def _table(lines: list[Line], letters: list[str]) -> str:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for letter in letters:
        table.add_column(letter, justify="right")
        if letter != letters[0]:
            table.add_column(f"{letter} − {letters[0]}", justify="right")
    group = None
    for line in lines:
        if line.group != group:
            group = line.group
            table.add_row(f"[bold]{GROUPS[group]}[/bold]" if group in GROUPS else "")
        cells = []
        for number, cell in enumerate(line.cells):
            cells.append(NONE if cell is None else cell_text(cell))
            if number:
                cells.append(NONE if cell is None else change_text(cell))
        table.add_row(f"  {_escaped(line.label)}", *cells)
    return _printed(table)


def _changes(comparison: Comparison, number: int, letter: str) -> list[str]:
    from rich.table import Table

    heads = comparison.heads[comparison.heads["model"] == number]
    if heads.empty:
        return []
    moved = transitions(heads[is_changed(heads)])
    told = [f"  {row.before} → {row.after}: {row.heads}" for row in moved.itertuples()] or ["  none"]
    changed = heads.reindex(heads["mass_change"].abs().sort_values(ascending=False, kind="stable").index).head(SHOWN)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("head", "A", letter, "mass in A", f"in {letter}", "change, points"):
        table.add_column(name, justify="left" if name in ("head", "A", letter) else "right")
    for row in changed.to_dict("records"):
        cell: Mapping[str, Any] = {
            "unit": "share",
            **{end: row[f"mass_{end}"] for end in ("change", "change_low", "change_high")},
        }
        table.add_row(
            f"{row['layer']}.{row['head']}",
            row["before"],
            row["after"],
            share(row["mass_before"]),
            share(row["mass_after"]),
            change_text(cell),
        )
    return [
        "\n".join([f"heads that are something else in {letter}:", *told]),
        f"heads whose sink's mass changes most in {letter}:\n{_printed(table)}",
    ]


def _printed(table: Any) -> str:
    from rich.console import Console

    console = Console(width=200, no_color=True)
    with console.capture() as text:
        console.print(table)
    return "\n".join(line.rstrip() for line in text.get().splitlines())


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
