"""The two phenotypes: how much an event's sink writes, against how alike the tokens are that it writes to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from sinkscope.report._data import ReportData
from sinkscope.report._figure import Drawing, FigureSpec, empty_drawing, log_ticks, new_figure
from sinkscope.report._format import count, number, percent
from sinkscope.report._rule import conditions_text, limits
from sinkscope.report._style import CLASS_COLOURS, INK, MUTED, Layout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 2000
"""More events than this are drawn as the density of hexagonal bins."""
_LEAST_RATIO = 1e-3


def _draw(data: ReportData, layout: Layout) -> Drawing:
    points = data.scatter
    if points.empty:
        return empty_drawing(layout, _why_empty(data))
    figure = new_figure(layout, 460 if layout.narrow else 440)
    axes = figure.add_subplot()
    x = points["ratio"].to_numpy(float).clip(min=_LEAST_RATIO)
    y = points["rank"].to_numpy(float)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(min(0.05, x.min()) / 1.25, max(2.0, x.max()) * 1.25)
    axes.set_ylim(0.9, max(4.0, y.max()) * 1.35)
    _draw_regions(data, axes)
    if len(points) > MOST_POINTS:
        _draw_density(axes, x, y, layout, grey=not data.events)
    else:
        _draw_points(axes, x, y, points["label"])
    log_ticks(axes.xaxis, *axes.get_xlim(), 5 if layout.narrow else 9)
    log_ticks(axes.yaxis, *axes.get_ylim(), 7)
    axes.set_xlabel(f"{data.ratio} (log scale)", color=INK)
    axes.set_ylabel("stable_rank (log scale)", color=INK)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=2 if layout.narrow else 4, markerscale=1.7)
    return Drawing(figure)


def _draw_regions(data: ReportData, axes: Axes) -> None:
    from matplotlib.patches import Rectangle

    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for name, conditions in (("nop", data.rule.nop), ("broadcast", data.rule.broadcast)):
        if not conditions:
            continue
        x_low, x_high = limits(conditions, data.ratio)
        y_low, y_high = limits(conditions, "stable_rank")
        x_low, x_high = max(x_low, left), min(x_high, right)
        y_low, y_high = max(y_low, bottom), min(y_high, top)
        colour = CLASS_COLOURS[name]
        corner, width, height = (x_low, y_low), x_high - x_low, y_high - y_low
        axes.add_patch(Rectangle(corner, width, height, facecolor=colour, alpha=0.07, linewidth=0, zorder=0.5))
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linestyle=(0, (4, 3))))
        words = conditions_text(conditions).replace(" and ", "\n")
        above, at_right = y_high < top, x_high == right
        axes.annotate(
            f"{name}\n{words}",
            (x_high if at_right else x_low, y_high),
            xytext=(-5 if at_right else 6, 5 if above else -5),
            textcoords="offset points",
            ha="right" if at_right else "left",
            va="bottom" if above else "top",
            fontsize=10,
            color=colour,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
            zorder=4,
        )


def _draw_points(axes: Axes, x: np.ndarray, y: np.ndarray, labels: pd.Series) -> None:
    for label in (*CLASS_COLOURS, "unknown", "sink"):
        at = (labels == label).to_numpy()
        if at.any():
            name = f"{label} ({at.sum():,})" if label != "sink" else f"mass ≥ 0.3, no event ({at.sum():,})"
            colour = CLASS_COLOURS.get(label, MUTED)
            axes.scatter(x[at], y[at], s=17, color=colour, alpha=0.6, linewidths=0, label=name)


def _draw_density(axes: Axes, x: np.ndarray, y: np.ndarray, layout: Layout, *, grey: bool) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    (left, right), (bottom, top) = (np.log10(axes.get_xlim()), np.log10(axes.get_ylim()))
    across = 34 if layout.narrow else 64
    colours = colormaps["Greys" if grey else "Blues"](np.linspace(0.28, 1.0, 128))
    bins = axes.hexbin(
        x,
        y,
        gridsize=(across, max(8, round(across * (0.7 if layout.narrow else 0.42)))),
        xscale="log",
        yscale="log",
        extent=(left, right, bottom, top),
        bins="log",
        mincnt=1,
        cmap=ListedColormap(colours),
        linewidths=0.1,
    )
    bar = axes.figure.colorbar(bins, ax=axes, location="bottom", aspect=40, fraction=0.04, pad=0.03)
    log_ticks(bar.ax.xaxis, *bar.ax.get_xlim(), 6)
    bar.set_label("sink rows per bin" if grey else "events per bin", fontsize=10.5)
    bar.outline.set_visible(False)


def _why_empty(data: ReportData) -> str:
    if not data.events and not data.sinks:
        return "No event, and no row with mass ≥ 0.3."
    what = count(data.events, "event") if data.events else f"No event, and {count(data.sinks, 'row')} with mass ≥ 0.3"
    return f"{what}, but {data.ratio} or stable_rank is null in all of them: no output projection was found."


def _caption(data: ReportData) -> str:
    points = data.scatter
    if points.empty:
        return f"n = 0 of {data.rows:,} rows."
    who = (
        f"{count(len(points), 'event')} under {data.rule.name}"
        if data.events
        else f"No row is an event under {data.rule.name}; in grey {count(len(points), 'row')} with mass ≥ 0.3"
    )
    classes = points["label"].value_counts()
    shares = ", ".join(
        f"{name} {classes[name]:,} ({percent(classes[name] / len(points))})"
        for name in (*CLASS_COLOURS, "unknown")
        if name in classes
    )
    binned = " Counted in hexagonal bins (log colours)." if len(points) > MOST_POINTS else ""
    left_out = (
        f" Not drawn: {count(data.unplaced, 'row')} without {data.ratio} or stable_rank (no output projection found)."
        if data.unplaced
        else ""
    )
    tiny = int((points["ratio"] < _LEAST_RATIO).sum())
    edge = f" {count(tiny, 'point')} below {_LEAST_RATIO:g} stand at the left edge." if tiny else ""
    medians = points[["ratio", "rank"]].median()
    middle = f" Medians: {data.ratio} {number(medians['ratio'])}, stable_rank {number(medians['rank'])}."
    regions = " Dashed: the boundaries of the rule." if data.rule.nop or data.rule.broadcast else ""
    return f"{who}{': ' + shares if shares else ''}.{middle}{regions}{binned}{left_out}{edge}"


PHENOTYPES = FigureSpec("phenotypes", "Two phenotypes", _draw, _caption)
