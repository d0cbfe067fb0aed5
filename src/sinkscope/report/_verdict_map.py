"""Layer x head: the verdict on each head, in colour and letter."""

from __future__ import annotations

import math

import pandas as pd

from sinkscope.report._data import ReportData
from sinkscope.report._figure import Drawing, FigureSpec, Mark
from sinkscope.report._format import count, head_name, missing, percent
from sinkscope.report._heads import Row, records
from sinkscope.report._heatmap import draw_grid
from sinkscope.report._style import INK, MUTED, VERDICT_COLOURS, VERDICT_LETTERS, Layout

_LEAST_LETTER = 9.0
"""Cells smaller than this, in CSS pixels, have no letter."""
_UNSEEN = "sink, not edited"
_FILLS = {**VERDICT_COLOURS, "no sink": "#edf0f3", _UNSEEN: "white"}


def _draw(data: ReportData, layout: Layout) -> Drawing:
    from matplotlib.patches import Patch

    heads = data.heads
    counts = _counts(heads)
    words = heads["verdict"].where(heads["verdict"].notna(), _UNSEEN)
    colours = [_FILLS[word] for word in words]
    rows = math.ceil(len(counts) / 2)
    grid = draw_grid(heads, colours, layout, "verdict", 20.0 * rows)
    size = 0.62 * min(grid.cell_width, grid.cell_height)
    if min(grid.cell_width, grid.cell_height) >= _LEAST_LETTER:
        for word, layer, head in zip(words, heads["layer"], heads["head"], strict=True):
            letter = VERDICT_LETTERS.get(word, "–")
            if letter:
                colour = {_UNSEEN: MUTED, "undecided": INK}.get(word, "white")
                grid.axes.text(
                    head, layer, letter, ha="center", va="center_baseline", fontsize=size, color=colour, weight="bold"
                )
    grid.foot.set_axis_off()
    handles = [
        Patch(
            facecolor=_FILLS[word],
            edgecolor="#98a1ab",
            linewidth=0.6,
            label=" ".join(filter(None, (VERDICT_LETTERS.get(word, "–"), word, f"({n:,})"))),
        )
        for word, n in counts.items()
    ]
    grid.foot.legend(handles=handles, loc="center", ncols=2, handlelength=1.1, columnspacing=1.2, borderpad=0)
    return Drawing(grid.figure, {"verdict": [_mark(row) for row in records(heads)]})


def _counts(heads: pd.DataFrame) -> dict[str, int]:
    """Number of heads of each word that occurs, in the order of the legend."""
    found = heads["verdict"].where(heads["verdict"].notna(), _UNSEEN).value_counts().to_dict()
    return {word: int(found[word]) for word in (*VERDICT_COLOURS, _UNSEEN) if word in found}


def _mark(row: Row) -> Mark:
    name, word = head_name(row["layer"], row["head"]), row["verdict"]
    if missing(word):
        return Mark(row["layer"], row["head"], f"{name}: {_UNSEEN}")
    sure = "" if missing(row["confidence"]) else f", confidence {percent(row['confidence'])}"
    return Mark(row["layer"], row["head"], f"{name}: {word}{sure}")


def _caption(data: ReportData) -> str:
    heads = data.heads
    sinks = heads[heads["kind"] == "sink"]
    edited = sinks[sinks["verdict"].notna()]
    told = ", ".join(f"{n:,} {word}" for word, n in _counts(edited).items()) or "none"
    unseen = len(sinks) - len(edited)
    letter = " C stands for bias, a constant vector." if (edited["verdict"] == "bias").any() else ""
    rest = f" {count(unseen, 'sink head')} {'was' if unseen == 1 else 'were'} not edited." if unseen else ""
    return (
        f"Verdicts on {len(edited):,} of {count(len(sinks), 'sink head')}, from edits of one head at a time: {told}."
        f"{rest} The other {count(len(heads) - len(sinks), 'head')} are no sinks.{letter}"
    )


VERDICT_MAP = FigureSpec("verdict", "Verdict by layer and head", _draw, _caption)
