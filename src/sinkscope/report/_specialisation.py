"""Which heads do it: event rate per head, sorted."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sinkscope.report._data import ReportData
from sinkscope.report._figure import Drawing, FigureSpec, Mark, empty_drawing, new_figure
from sinkscope.report._format import count, head_name, interval, missing, percent
from sinkscope.report._heads import Row, records
from sinkscope.report._style import EMPTY, GRID, INK, MUTED, ROLE_COLOURS, Layout


def _ranked(data: ReportData) -> pd.DataFrame:
    heads = data.heads[(data.heads["event_rate"] > 0) | (data.heads["sink_rate"] > 0)]
    return heads.sort_values(
        ["event_rate", "sink_rate", "layer", "head"], ascending=[False, False, True, True], ignore_index=True
    )


def _draw(data: ReportData, layout: Layout) -> Drawing:
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    heads = _ranked(data)
    if heads.empty:
        return empty_drawing(layout, "No head to rank: none has an event, none reaches mass 0.3.")
    rank = np.arange(1, len(heads) + 1)
    figure = new_figure(layout, 330)
    axes = figure.add_subplot()
    roles = ["unknown" if missing(role) or role not in ROLE_COLOURS else str(role) for role in heads["role"]]
    spans = heads[["event_rate_low", "event_rate_high"]].to_numpy(float)
    step = (layout.width - 70) / len(heads)
    axes.add_collection(
        LineCollection(
            [[(x, low), (x, high)] for x, (low, high) in zip(rank, spans, strict=True)],
            colors=EMPTY,
            linewidths=min(2.0, max(0.5, 0.4 * step)),
        )
    )
    axes.plot(rank, heads["sink_rate"], linestyle="none", marker="_", markersize=min(9, max(2, step)), color=MUTED)
    dots = axes.scatter(
        rank,
        heads["event_rate"],
        s=min(7.0, max(2.5, step)) ** 2,
        c=[ROLE_COLOURS[role] for role in roles],
        edgecolors="white" if step > 8 else "none",
        linewidths=0.5,
        zorder=3,
        clip_on=False,
    )
    dots.set_gid("specialisation")
    axes.set_xlim(0.4, len(heads) + 0.6)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="y", color=GRID)
    if step >= 13:
        names = [head_name(layer, head) for layer, head in heads[["layer", "head"]].itertuples(index=False)]
        axes.set_xticks(rank, names, rotation=90)
        axes.tick_params(axis="x", length=0)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_xlabel("head, by rank", color=INK)
    axes.set_ylabel("share of inputs", color=INK)
    handles = [
        Line2D([], [], linestyle="none", marker="o", color=colour, label=f"events, sink mostly {role}")
        for role, colour in ROLE_COLOURS.items()
        if role in roles
    ]
    handles += [
        Line2D([], [], color=EMPTY, linewidth=3, label="95% interval"),
        Line2D([], [], linestyle="none", marker="_", markersize=9, color=MUTED, label="mass ≥ 0.3"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=1 if layout.narrow else 3)
    return Drawing(figure, {"specialisation": [_mark(row) for row in records(heads)]})


def _mark(row: Row) -> Mark:
    text = f"{head_name(row['layer'], row['head'])}: event rate {percent(row['event_rate'])}, {row['role']}"
    return Mark(row["layer"], row["head"], text)


def _caption(data: ReportData) -> str:
    heads = data.heads
    undrawn = len(heads) - len(_ranked(data))
    inputs = count(int(heads["n_inputs"].max()), "input")
    rest = ""
    if undrawn:
        rest = f" {count(undrawn, 'head')} of {len(heads):,} reached mass 0.3 on no input and had no event: not drawn."
        upper = heads.loc[heads["event_rate"] == 0, "event_rate_high"].max()
        rest += "" if missing(upper) else f" No event on {inputs} leaves a rate of {interval(0.0, upper, percent)}."
    if not data.events:
        return f"No head has an event under {data.rule.name} on {inputs}.{rest}"
    rates = heads["event_rate"].fillna(0.0).sort_values(ascending=False).to_numpy(float)
    top = max(1, round(0.1 * len(rates)))
    return (
        f"Share of the {inputs} on which each head has an event under {data.rule.name}, highest first, with Wilson 95% "
        f"intervals. Share of all events in the first {top:,} of {count(len(heads), 'head')}: "
        f"{percent(rates[:top].sum() / rates.sum())}.{rest}"
    )


SPECIALISATION = FigureSpec("specialisation", "Head specialisation", _draw, _caption)
