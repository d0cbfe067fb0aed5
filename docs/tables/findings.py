"""Findings of experiments as they are committed, with their figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

FINDINGS = (
    *("yardstick", "nulls", "coverage", "real", "treat-planted", "treat-minilm", "treat-dinov2"),
    *(f"treat-smollm2-{name}" for name in ("removal", "recovery", "streaming", "quantisation")),
)
"""Folders under experiments/results whose `findings.md` and figures stand in a page."""

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
    for name in FINDINGS:
        for figure in _figures_of(name):
            yield f"results/{name}/{figure.name}", figure


def _figures_of(name: str) -> list[Path]:
    return sorted((_RESULTS / name).glob("*.svg"))
