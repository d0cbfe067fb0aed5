"""What the terminal shows of verdicts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 12
_COLUMNS = ("layer", "head", "verdict", "confidence", "n_verified", "n_needed", "reason")


def verdict_records(verdicts: pd.DataFrame) -> list[dict[str, Any]]:
    """The edited heads as plain values, in their order."""
    edited = verdicts.loc[verdicts["n_verified"].notna(), list(_COLUMNS)]
    records: list[dict[str, Any]] = json.loads(edited.to_json(orient="records", double_precision=6))
    return records


def verdict_lines(verdicts: pd.DataFrame, folder: str) -> list[str]:
    """One line per edited head, the first SHOWN of them: its verdict, how sure it is, and why."""
    records = verdict_records(verdicts)
    if not records:
        return ["no head was edited, since none is a sink head; --heads all edits them all the same"]
    lines = [_line(record) for record in records[:SHOWN]]
    if hidden := len(records) - len(lines):
        lines.append(f"{hidden} more edited heads; all of them: {folder}/verdicts.parquet and the report")
    return lines


def _line(record: dict[str, Any]) -> str:
    name, sure = f"{record['layer']}.{record['head']}", record["confidence"]
    return f"  {name:7}{record['verdict']:11}{'  - ' if sure is None else f'{sure:4.0%}'}  {record['reason']}"
