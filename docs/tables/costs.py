"""What edits and treatments cost, from the committed benchmarks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .markdown import plain, table, with_range

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def edits() -> str:
    """Edited heads against time, and against the plain way."""
    found = _read("verify")
    if found is None:
        return _missing("verify")
    head = ["model", "edited heads", "rows", "seconds", "ms per row", "times faster than one forward per edit"]
    rows = [
        [
            row["case"],
            str(row["heads"]),
            f"{row['rows']:,}",
            f"{row['seconds']:.1f}",
            f"{row['milliseconds per row']:.1f}",
            _ratio(row["times faster than the plain way"], 1),
        ]
        for row in found["rows"]
    ]
    figure = "![Cost of edits against the number of edited heads](results/benchmarks/verify.svg)"
    return "\n\n".join([f"Measured on {plain(found['machine'])}.", table(head, rows), figure])


def treatments() -> str:
    """Time of a treated model over that of the untouched one."""
    found = _read("treat")
    if found is None:
        return _missing("treat")
    cases = list(dict.fromkeys(row["case"] for row in found["rows"]))
    by_place = {(row["treatment"], row["case"]): row for row in found["rows"]}
    rows = []
    for name in dict.fromkeys(row["treatment"] for row in found["rows"]):
        own = [by_place.get((name, case)) for case in cases]
        aim = next((row["aim"] for row in own if row is not None), None)
        cells = [
            "–" if row is None else _ratio(row[part], 2) for part in ("forward", "forward and backward") for row in own
        ]
        rows.append([name, "" if aim is None else f"{aim:.2f}", *cells])
    head = ["treatment", "aim", *cases, *(f"{case}, with backward" for case in cases)]
    return "\n\n".join([f"Measured on {plain(found['machine'])}.", table(head, rows)])


def stream() -> str:
    """Memory of the cache for streaming."""
    found = _read("treat")
    if found is None or not found["stream"]:
        return _missing("treat")
    rows = [[f"{row['tokens']:,}", f"{row['cache_mb']:.2f}", f"{row['peak_mb']:,.0f}"] for row in found["stream"]]
    return table(["tokens read", "keys and values, MB", "peak over the model, MB"], rows)


def figures() -> Iterator[tuple[str, Path]]:
    """Place in the site and file of every committed figure."""
    for figure in sorted(RESULTS.glob("*.svg")):
        yield f"results/benchmarks/{figure.name}", figure


def _read(name: str) -> dict[str, Any] | None:
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _missing(name: str) -> str:
    return f"*Not measured yet: `python benchmarks/{name}.py` writes the numbers.*"


def _ratio(of: dict[str, float], digits: int) -> str:
    return with_range(*(f"{of[name]:.{digits}f}" for name in ("median", "low", "high")))
