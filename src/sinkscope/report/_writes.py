"""What the sinks write: silent, constant and content shares of every sink head."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sinkscope.explain import MIN_SINK_INPUTS
from sinkscope.report._data import ReportData
from sinkscope.report._figure import Drawing, FigureSpec, Mark, empty_drawing, log_ticks, new_figure
from sinkscope.report._format import count, head_name, interval, number, percent
from sinkscope.report._heads import Row, records
from sinkscope.report._style import GRID, INK, MUTED, SHARE_COLOURS, Layout

_KINDS = ("content", "constant", "silent")


def normalised(heads: pd.DataFrame) -> pd.DataFrame:
    """`content`, `constant` and `silent`, at least 0 and summing to 1, with the interval `low` to `high` of content,
    the `energy` and whether the constant lies `below` 0. Where the energy is above 1, shares are of the energy.

    A constant below 0 counts as 0, a content above the energy as the energy.
    """
    energy = (heads["constant"] + heads["content"]).clip(lower=0.0)
    whole = energy.clip(lower=1.0)
    content = heads["content"].clip(lower=0.0).clip(upper=energy) / whole
    return pd.DataFrame(
        {
            "layer": heads["layer"],
            "head": heads["head"],
            "energy": energy,
            "content": content,
            "constant": energy / whole - content,
            "silent": 1 - energy / whole,
            "low": (heads["content_low"].clip(lower=0.0) / whole).clip(upper=1.0),
            "high": (heads["content_high"].clip(lower=0.0) / whole).clip(upper=1.0),
            "below": heads["constant"] < 0,
        }
    )


def _shares(data: ReportData) -> pd.DataFrame:
    """One row per head that has shares, sorted by its leading kind and then by how much that leads."""
    shares = normalised(data.heads[data.heads["content"].notna()].reset_index(drop=True))
    kinds = list(_KINDS)
    shares["lead"] = shares[kinds].to_numpy(float).argmax(axis=1)
    shares["size"] = shares[kinds].max(axis=1)
    return shares.sort_values(
        ["lead", "size", "layer", "head"], ascending=[False, False, True, True], ignore_index=True
    )


def _draw(data: ReportData, layout: Layout) -> Drawing:
    from matplotlib.collections import LineCollection, PolyCollection
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    shares = _shares(data)
    if shares.empty:
        return empty_drawing(layout, _why_empty(data))
    n = len(shares)
    figure = new_figure(layout, 430)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.3))
    step = (layout.width - 76) / n
    half = 0.44 if step > 5 else 0.5
    tooltips = [_mark(row) for row in records(shares)]
    marks = {}
    base = np.zeros(n)
    for kind in _KINDS:
        level = base + shares[kind].to_numpy(float)
        columns = PolyCollection(
            [
                [(x - half, low), (x - half, high), (x + half, high), (x + half, low)]
                for x, low, high in zip(range(1, n + 1), base, level, strict=True)
            ],
            facecolors=SHARE_COLOURS[kind],
            edgecolors="none",
        )
        columns.set_gid(f"writes-{kind}")
        marks[f"writes-{kind}"] = tooltips
        top.add_collection(columns)
        base = level
    ends = shares[["low", "high"]].to_numpy(float)
    top.add_collection(
        LineCollection(
            [[(x, low), (x, high)] for x, (low, high) in zip(range(1, n + 1), ends, strict=True)],
            colors=INK,
            linewidths=min(1.4, max(0.4, 0.25 * step)),
        )
    )
    top.set_xlim(0.3, n + 0.7)
    top.set_ylim(0, 1)
    top.yaxis.set_major_formatter(PercentFormatter(1))
    top.set_ylabel("share", color=INK)
    top.tick_params(axis="x", length=0, labelbottom=False)
    _draw_energy(bottom, shares["energy"].to_numpy(float), step)
    if step >= 13:
        names = [head_name(layer, head) for layer, head in shares[["layer", "head"]].itertuples(index=False)]
        bottom.set_xticks(range(1, n + 1), names, rotation=90)
        bottom.tick_params(axis="x", length=0)
    else:
        bottom.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        bottom.set_xlabel("sink head, in the order of the columns", color=INK)
    handles = [
        Patch(color=SHARE_COLOURS[kind], label=f"{kind}: largest in {count(int((shares['lead'] == i).sum()), 'head')}")
        for i, kind in enumerate(_KINDS)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=1 if layout.narrow else 3)
    return Drawing(figure, marks)


def _draw_energy(axes: Any, energy: np.ndarray, step: float) -> None:
    positive = energy[energy > 0]
    low = min(0.5, float(positive.min()) if positive.size else 0.5) / 1.6
    high = max(2.0, float(energy.max())) * 1.6
    axes.axhline(1, color=MUTED, linewidth=1)
    axes.plot(
        np.arange(1, len(energy) + 1),
        np.maximum(energy, low),
        linestyle="none",
        marker="o",
        markersize=min(5, max(1.5, 0.6 * step)),
        color=INK,
    )
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    log_ticks(axes.yaxis, low, high, 4)
    axes.grid(axis="y", color=GRID)
    axes.set_ylabel("energy", color=INK)


def _mark(row: Row) -> Mark:
    shares = ", ".join(f"{kind} {percent(row[kind])}" for kind in reversed(_KINDS))
    text = f"{head_name(row['layer'], row['head'])}: {shares}, energy {number(row['energy'])}"
    return Mark(row["layer"], row["head"], text)


def _why_empty(data: ReportData) -> str:
    if not data.sinks:
        return "No row has mass ≥ 0.3: there is no sink that could write anything."
    most = int((data.heads["sink_rate"] * data.heads["n_inputs"]).max().round())
    return (
        f"No head has shares. They need {MIN_SINK_INPUTS} inputs or more with mass ≥ 0.3 (the most here is {most:,}) "
        "and a known output projection."
    )


def _caption(data: ReportData) -> str:
    shares = _shares(data)
    if shares.empty:
        return f"n = 0 of {count(len(data.heads), 'head')}."
    loud = shares[shares["energy"] > 1]
    above = (
        f" In {count(len(loud), 'head')} the sink writes more than an ordinary token (energy above 1, up to "
        f"{number(loud['energy'].max())}): their columns are shares of that energy, nothing is silent."
        if len(loud)
        else ""
    )
    below = int(shares["below"].sum())
    dipped = f" The unbiased constant dips below 0 in {count(below, 'head')}; it is drawn as 0." if below else ""
    most = records(shares)[int(shares["content"].to_numpy().argmax())]
    return (
        f"What the sinks of {count(len(shares), 'head')} write, relative to an ordinary token (energy 1, lower panel, "
        f"log scale): content differs from input to input, constant is the same vector on every input, silent is "
        f"what is missing to 1. Black lines are 95% bootstrap intervals of content.{above}{dipped} The largest content "
        f"is in {head_name(most['layer'], most['head'])}: {percent(most['content'])} "
        f"({interval(most['low'], most['high'], percent)})."
    )


WRITES = FigureSpec("sink_writes", "Silent, constant, content", _draw, _caption)
