"""Silent, constant, content from the edits: one point per head in a triangle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sinkscope.report._data import ReportData
from sinkscope.report._effects import draw_spans, shown, verdict_handles
from sinkscope.report._figure import Drawing, FigureSpec, Mark, empty_drawing, new_figure
from sinkscope.report._format import count, head_name, percent
from sinkscope.report._heads import records
from sinkscope.report._style import EMPTY, GRID, INK, MUTED, VERDICT_COLOURS, VERDICT_MARKERS, Layout
from sinkscope.report._writes import normalised

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HEIGHT = 3**0.5 / 2
_CORNERS = {"silent": (0.0, 0.0), "constant": (1.0, 0.0), "content": (0.5, _HEIGHT)}
_EMPTY = "The edits leave the three shares of every head unknown."


def _points(data: ReportData) -> pd.DataFrame:
    verdicts = shown(data)
    known = verdicts[verdicts[["constant", "content"]].notna().all(axis=1)].reset_index(drop=True)
    return normalised(known).assign(verdict=known["verdict"])


def _place(content: np.ndarray, constant: np.ndarray) -> np.ndarray:
    return np.stack([constant + 0.5 * content, _HEIGHT * content], axis=-1)


def _draw(data: ReportData, layout: Layout) -> Drawing:
    points = _points(data)
    if points.empty:
        return empty_drawing(layout, _EMPTY)
    figure = new_figure(layout, 0.86 * min(layout.width, 470) + 70)
    axes = figure.add_subplot()
    _draw_frame(axes)
    constant, content = points["constant"].to_numpy(float), points["content"].to_numpy(float)
    ends = points[["low", "high"]].to_numpy(float)
    rest = np.where(content < 1, 1 - content, 1.0)
    draw_spans(axes, *(_place(end, constant * (1 - end) / rest) for end in ends.T), color=EMPTY, linewidth=1.0)
    at = _place(content, constant)
    marks = {}
    for word, heads in points.groupby("verdict", sort=False):
        dots = axes.scatter(
            at[heads.index, 0],
            at[heads.index, 1],
            s=34 if len(points) <= 60 else 18,
            marker=VERDICT_MARKERS[str(word)],
            c=[VERDICT_COLOURS[str(word)]] * len(heads),
            edgecolors="white",
            linewidths=0.6,
            alpha=0.85,
            zorder=3,
            clip_on=False,
        )
        name = f"causal_shares-{str(word).replace(' ', '_')}"
        dots.set_gid(name)
        marks[name] = [
            Mark(
                row["layer"],
                row["head"],
                f"{head_name(row['layer'], row['head'])}, {word}: silent {percent(row['silent'])}, constant "
                f"{percent(row['constant'])}, content {percent(row['content'])}",
            )
            for row in records(heads)
        ]
    counts = points["verdict"].value_counts()
    handles = verdict_handles({word: int(counts[word]) for word in VERDICT_COLOURS if word in counts})
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if layout.narrow else 5)
    return Drawing(figure, marks)


def _draw_frame(axes: Axes) -> None:
    from matplotlib.patches import Polygon

    corners = np.array(list(_CORNERS.values()))
    for share in (0.25, 0.5, 0.75):
        for apex in range(3):
            one, other = (corners[(apex + turn) % 3] for turn in (1, 2))
            line = np.array([share * corners[apex] + (1 - share) * side for side in (one, other)])
            axes.plot(*line.T, color=GRID, linewidth=0.8, zorder=0.5)
        left = _CORNERS["content"][0] * share, _HEIGHT * share
        axes.annotate(
            f"{share:.0%}", left, xytext=(-5, 2), textcoords="offset points", ha="right", fontsize=9, color=MUTED
        )
    axes.add_patch(Polygon(corners, fill=False, edgecolor=MUTED, linewidth=1.0, zorder=1))
    words = {"silent": "hands out nothing", "constant": "one vector for all inputs", "content": "this input"}
    for name, corner in _CORNERS.items():
        top = name == "content"
        axes.annotate(
            f"{name}\n{words[name]}",
            corner,
            xytext=(0, 7 if top else -7),
            textcoords="offset points",
            ha="center" if top else "left" if name == "silent" else "right",
            va="bottom" if top else "top",
            color=INK,
            linespacing=1.25,
        )
    axes.set_aspect("equal")
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(-0.16, _HEIGHT + 0.14)  # with room for the words at the corners
    axes.set_axis_off()


def _caption(data: ReportData) -> str:
    points = _points(data)
    if points.empty:
        return f"n = 0 of {count(len(shown(data)), 'edited head')}."
    kinds = ["silent", "constant", "content"]
    largest = points[kinds].to_numpy(float).argmax(axis=1)
    told = ", ".join(f"{kind} {int((largest == place).sum()):,}" for place, kind in enumerate(kinds))
    loud = int((points["energy"] > 1).sum())
    above = (
        f" In {count(loud, 'head')} the sink hands out more than an ordinary token would; their shares are of that."
        if loud
        else ""
    )
    return (
        f"What the sink hands out, from the effects of the edits on the head’s write and on the final tokens "
        f"({count(len(points), 'head')}; in units of an ordinary value’s energy): a point nearer to a corner has more "
        f"of it; percents on the left edge are content. Largest share: {told}. Grey lines are 95% bootstrap intervals "
        f"of content.{above}"
    )


TERNARY = FigureSpec("causal_shares", "Silent, constant, content: by edits", _draw, _caption)
