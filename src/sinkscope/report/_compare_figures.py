"""Figures of a comparison: heads side by side, mass before and after, outliers and norms by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pandas as pd

from sinkscope.explain import is_changed
from sinkscope.report._compare_data import STATE_COLOURS, STATE_LETTERS, CompareData
from sinkscope.report._figure import Drawing, Mark, layer_axis, log_ticks, new_figure
from sinkscope.report._format import head_name, number
from sinkscope.report._heads import records
from sinkscope.report._heatmap import draw_grid
from sinkscope.report._style import GRID, INK, MUTED, Layout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HALF = Layout("half", 392)
"""Two beside each other on a wide page."""
_LEAST_LETTER = 9.0
_LIGHT = ("none", "uniform", "diagonal")


def head_map(data: CompareData, model: int, side: str, layout: Layout) -> Drawing:
    """Layer x head: what each head is, `before` or `after`, in the diagnosis `model` is compared with or in itself."""
    from matplotlib.patches import Patch

    heads, names = data.heads(model), data.state_names(model)
    words = heads[side]
    name = f"map-{data.letter(model if side == 'after' else 0)}"
    shown = {word: int(n) for word, n in words.value_counts().to_dict().items()}
    legend = [word for word in STATE_COLOURS if (heads[["before", "after"]] == word).any(axis=None)]
    grid = draw_grid(heads, [STATE_COLOURS[word] for word in words], layout, name, 20.0 * math.ceil(len(legend) / 2))
    size = 0.62 * min(grid.cell_width, grid.cell_height)
    changed = is_changed(heads)
    if min(grid.cell_width, grid.cell_height) >= _LEAST_LETTER:
        for word, layer, head in zip(words, heads["layer"], heads["head"], strict=True):
            colour = INK if word in (*_LIGHT, "undecided") else "white"
            letter = STATE_LETTERS[word]
            grid.axes.text(
                head, layer, letter, ha="center", va="center_baseline", fontsize=size, color=colour, weight="bold"
            )
    if side == "after":
        for layer, head in heads.loc[changed, ["layer", "head"]].itertuples(index=False):
            x, y = (head - 0.5, head + 0.5), (layer - 0.5, layer + 0.5)
            outline = [x[0], x[1], x[1], x[0], x[0]], [y[0], y[0], y[1], y[1], y[0]]
            grid.axes.plot(*outline, color=INK, linewidth=1.3, clip_on=False)
    grid.foot.set_axis_off()
    handles = [
        Patch(
            facecolor=STATE_COLOURS[word],
            edgecolor="#98a1ab",
            linewidth=0.6,
            label=_legend(word, names[word], shown.get(word, 0)),
        )
        for word in legend
    ]
    grid.foot.legend(handles=handles, loc="center", ncols=2, handlelength=1.1, columnspacing=1.2, borderpad=0)
    letters = data.letter(0), data.letter(model)
    return Drawing(grid.figure, {name: [_map_mark(row, letters, names) for row in records(heads)]})


def _legend(word: str, name: str, n: int) -> str:
    return " ".join(filter(None, (STATE_LETTERS[word], name, f"({n:,})")))


def _map_mark(row: dict[str, object], letters: tuple[str, str], names: Mapping[str, str]) -> Mark:
    layer, head = int(str(row["layer"])), int(str(row["head"]))
    told = ", ".join(
        f"{letter} {names[str(word)]}" for letter, word in zip(letters, (row["before"], row["after"]), strict=True)
    )
    return Mark(layer, head, f"{head_name(layer, head)}: {told}")


def mass_scatter(data: CompareData, model: int, layout: Layout) -> Drawing:
    """Mean mass on the sink of each head, before against after."""
    heads, names = data.heads(model), data.state_names(model)
    figure = new_figure(layout, min(layout.width, 400) + 40)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=GRID, linewidth=1.2, zorder=0)
    marks = {}
    for place, word in enumerate(STATE_COLOURS):
        own = heads[heads["before"] == word].dropna(subset=["mass_before", "mass_after"])
        if own.empty:
            continue
        name = f"mass-{data.letter(model)}-{place}"
        points = axes.scatter(
            own["mass_before"],
            own["mass_after"],
            s=40,
            c=[STATE_COLOURS[word]] * len(own),
            edgecolors=MUTED if word in _LIGHT else "white",
            linewidths=0.6,
            clip_on=False,
            label=names[word],
        )
        points.set_gid(name)
        marks[name] = [_mass_mark(row, data.letter(model)) for row in records(own)]
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axes.grid()
    axes.set_xlabel(f"mean mass on the sink in {data.letter(0)}")
    axes.set_ylabel(f"in {data.letter(model)}")
    figure.legend(
        loc="outside lower center", ncols=2 if layout.narrow else 4, title=f"what the head is in {data.letter(0)}"
    )
    return Drawing(figure, marks)


def _mass_mark(row: dict[str, object], letter: str) -> Mark:
    layer, head = int(str(row["layer"])), int(str(row["head"]))
    told = f"{number(row['mass_before'])} in A, {number(row['mass_after'])} in {letter}"
    return Mark(layer, head, f"{head_name(layer, head)}: mass {told}")


_PANELS = (
    ("largest", "largest activation"),
    ("kurtosis", "kurtosis"),
    ("channel_kurtosis", "kurtosis of channels"),
)


def outliers_by_layer(data: CompareData, layout: Layout) -> Drawing:
    """Largest activation and both kurtoses of the residual stream, by layer and model."""
    panels = [(name, title) for name, title in _PANELS if data.layers("outliers", name)]
    rows, columns = (len(panels), 1) if layout.narrow else (1, len(panels))
    figure = new_figure(layout, 250 * rows + 60)
    for place, (name, title) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, place)
        _lines(axes, data, "outliers", name, first=place == 1)
        if name == "largest":
            for model, part in data.layers("outliers", "largest_added").items():
                axes.plot(
                    part["layer"].astype(int),
                    part["value"],
                    color=data.colour(model),
                    linestyle=(0, (2, 2)),
                    linewidth=1.4,
                    label=f"{data.letter(model)}, added tokens",
                )
        axes.set_title(title)
    figure.legend(loc="outside lower center", ncols=2 if layout.narrow else 4)
    return Drawing(figure)


def norms_by_layer(data: CompareData, layout: Layout) -> Drawing:
    """Norm of the hidden state at the sink over that of the median token, by layer and model."""
    figure = new_figure(layout, 320)
    axes = figure.add_subplot()
    _lines(axes, data, "norms", "hidden_ratio", first=True)
    axes.axhline(1, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_ylabel("norm at the sink / of median token")
    figure.legend(loc="outside lower center", ncols=2 if layout.narrow else 4)
    return Drawing(figure)


def _lines(axes: Axes, data: CompareData, group: str, measure: str, *, first: bool) -> None:
    """One line per model with its intervals, on a log axis where everything is above 0."""
    found = data.layers(group, measure)
    for model, part in found.items():
        layers, colour = part["layer"].astype(int), data.colour(model)
        axes.vlines(
            layers, part["low"], part["high"], color=colour, linewidth=4 if len(layers) <= 20 else 2, alpha=0.35
        )
        label = data.letter(model) if first else None
        style = "-" if model % 2 == 0 else (0, (5, 1))
        axes.plot(
            layers, part["value"], color=colour, marker="o", markersize=3.5, linewidth=1.6, linestyle=style, label=label
        )
    everything = pd.concat(found.values())
    if (everything["value"] > 0).all():
        axes.set_yscale("log")
        log_ticks(axes.yaxis, *axes.get_ylim(), most=6)
    axes.grid(axis="y")
    layer_axis(axes, sorted(set(everything["layer"].astype(int))))
