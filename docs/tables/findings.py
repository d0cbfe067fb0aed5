"""Findings of experiments as they are committed, with their figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def findings(name: str) -> str:
    """The committed findings of an experiment and its figures, to stand under a heading of the second order."""
    path = _RESULTS / name / "findings.md"
    if not path.is_file():
        return "*Not run yet: no table is committed.*"
    text = path.read_text(encoding="utf-8").strip()
    return "\n\n".join([text, *(f"![{figure.stem}](results/{name}/{figure.name})" for figure in _figures_of(name))])


def figures() -> Iterator[tuple[str, Path]]:
    """Place in the site and file of every committed figure beside findings."""
    for path in sorted(_RESULTS.glob("*/findings.md")):
        for figure in _figures_of(path.parent.name):
            yield f"results/{path.parent.name}/{figure.name}", figure


def _figures_of(name: str) -> list[Path]:
    return sorted((_RESULTS / name).glob("*.svg"))
