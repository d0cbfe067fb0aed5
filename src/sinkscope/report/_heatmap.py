"""Layer x head: how often each head sinks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sinkscope.report._data import ReportData
from sinkscope.report._figure import Drawing, FigureSpec, Mark, new_figure
from sinkscope.report._format import count, head_name, percent
from sinkscope.report._heads import Row, records
from sinkscope.report._style import EMPTY, INK, MUTED, Layout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MEANING = {"event_rate": "share of inputs that are an event", "sink_rate": "share of inputs with mass ≥ 0.3"}
_MARGIN, _LEAST_WIDTH = 52, 260
_COLOURS = "Blues"


@dataclass(frozen=True)
class Grid:
    """A drawn map of layer x head: `foot` is the axes below it, cell sizes are in CSS pixels."""

    figure: Figure
    axes: Axes
    foot: Axes
    cell_width: float
    cell_height: float


def draw_grid(heads: pd.DataFrame, colours: Any, layout: Layout, name: str, foot: float) -> Grid:
    """One cell per head in its colour, in a collection with the id `name`; below it, axes `foot` CSS pixels high."""
    from matplotlib.collections import PolyCollection

    n_heads, n_layers = int(heads["head"].max()) + 1, int(heads["layer"].max()) + 1
    cell_width = min(34.0, (layout.width - _MARGIN) / n_heads, max((400 - _MARGIN) / n_heads, 11.0))
    cell_height = min(30.0, max(520 / n_layers, 9.0), 2.0 * cell_width + 6)
    columns = max(float(n_heads), (_LEAST_WIDTH - _MARGIN) / cell_width)
    width = math.ceil(_MARGIN + columns * cell_width)
    figure = new_figure(Layout(layout.name, width), 102 + foot + n_layers * cell_height)
    axes, foot_axes = figure.subplots(2, 1, height_ratios=(n_layers * cell_height, foot))
    gap_x, gap_y = 0.75 / cell_width, 0.75 / cell_height
    cells = PolyCollection(
        [_cell(x, y, gap_x, gap_y) for y, x in heads[["layer", "head"]].itertuples(index=False)],
        facecolors=colours,
        edgecolors="#d5dae0",
        linewidths=0.5,
        clip_on=False,
    )
    cells.set_gid(name)
    axes.add_collection(cells)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.set_ylim(n_layers - 0.5, -0.5)
    axes.set_xticks(range(0, n_heads, math.ceil(24 / cell_width)))
    axes.set_yticks(range(0, n_layers, math.ceil(n_layers / 14)))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("head", color=INK)
    axes.set_ylabel("layer", color=INK)
    return Grid(figure, axes, foot_axes, cell_width, cell_height)


def _draw(measure: str, data: ReportData, layout: Layout) -> Drawing:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import to_rgba
    from matplotlib.ticker import PercentFormatter

    heads = data.heads
    scale = ScalarMappable(cmap=_COLOURS)
    scale.set_clim(0, 1)
    colours = scale.to_rgba(heads[measure].to_numpy(float))
    colours[heads[measure].isna()] = to_rgba(EMPTY)
    grid = draw_grid(heads, colours, layout, measure, 10)
    bar = grid.figure.colorbar(
        scale, cax=grid.foot, orientation="horizontal", format=PercentFormatter(1), ticks=[0, 0.5, 1]
    )
    bar.outline.set_visible(False)
    grid.foot.tick_params(length=2, color=MUTED)
    bar.set_label(_MEANING[measure], fontsize=10.5)
    return Drawing(grid.figure, {measure: [_mark(row, measure) for row in records(heads)]})


def _cell(x: int, y: int, gap_x: float, gap_y: float) -> Sequence[tuple[float, float]]:
    left, right, top, bottom = x - 0.5 + gap_x, x + 0.5 - gap_x, y - 0.5 + gap_y, y + 0.5 - gap_y
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _mark(row: Row, measure: str) -> Mark:
    text = f"{head_name(row['layer'], row['head'])}: {measure.replace('_', ' ')} {percent(row[measure])}"
    return Mark(row["layer"], row["head"], text)


def _caption(measure: str, data: ReportData) -> str:
    heads = data.heads
    rates = heads[measure].to_numpy(float)
    n_inputs = int(heads["n_inputs"].max())
    total = data.events if measure == "event_rate" else data.sinks
    what = f"events under the rule {data.rule.name}" if measure == "event_rate" else "rows with mass ≥ 0.3"
    head = (
        f"{total:,} of {data.rows:,} rows (one per input, layer and head; {count(n_inputs, 'input')}) are {what}. "
        if measure == "event_rate"
        else f"{total:,} of {data.rows:,} rows (one per input, layer and head) have mass ≥ 0.3, whatever the rule. "
    )
    undecided = int(np.isnan(rates).sum())
    if undecided:
        head += f"In {count(undecided, 'head')} (grey) the rule cannot decide, since values it needs are missing. "
    if not np.nan_to_num(rates).any():
        return f"{head}No head has any."
    best = records(heads)[int(np.nanargmax(rates))]
    return (
        f"{head}{count(int((rates > 0).sum()), 'head')} of {len(heads):,} at least once, "
        f"{int((rates >= 0.5).sum()):,} on half of the inputs or more; the highest rate is {percent(best[measure])} "
        f"({percent(best[measure + '_low'])} to {percent(best[measure + '_high'])}) "
        f"in {head_name(best['layer'], best['head'])}."
    )


EVENT_RATE = FigureSpec(
    "event_rate", "Event rate by layer and head", partial(_draw, "event_rate"), partial(_caption, "event_rate")
)
SINK_RATE = FigureSpec(
    "sink_rate", "Sink rate by layer and head", partial(_draw, "sink_rate"), partial(_caption, "sink_rate")
)
