"""What each edit changes in each head, beside the control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sinkscope.report._data import ReportData
from sinkscope.report._figure import Drawing, FigureSpec, Mark, empty_drawing, log_ticks, new_figure
from sinkscope.report._format import change, count, head_name, interval
from sinkscope.report._heads import Row, records
from sinkscope.report._style import GRID, INK, MUTED, VERDICT_COLOURS, VERDICT_MARKERS, Layout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS: tuple[tuple[str, str], ...] = (
    ("zero", "zero: the sink hands out nothing"),
    ("mean", "mean: the head’s mean over other inputs"),
    ("donor", "donor: another input’s sink value"),
    ("ordinary", "ordinary: a value that is no sink’s"),
    ("redirect", "redirect: attention goes to the other tokens"),
)
_DECADES = 4
"""Effects more than this many decades below the largest stand at the lower edge."""


def shown(data: ReportData) -> pd.DataFrame:
    """The verdicts that have effects, in the order of words, then of heads."""
    if data.verified is None:
        raise ValueError("no head was edited")
    verdicts = data.verified.verdicts
    found: pd.DataFrame = verdicts[verdicts["effect_zero"].notna()].reset_index(drop=True)
    return found


def _draw(data: ReportData, layout: Layout) -> Drawing:
    verdicts = shown(data)
    if verdicts.empty:
        return empty_drawing(layout, "No effect could be measured.")
    n = len(verdicts)
    figure = new_figure(layout, 112 * len(PANELS) + 110)
    panels = figure.subplots(len(PANELS), 1, sharex=True, sharey=True)
    step = (layout.width - 76) / n
    low, high = _limits(verdicts)
    marks: dict[str, list[Mark]] = {}
    for axes, (edit, title) in zip(panels, PANELS, strict=True):
        marks |= _draw_panel(axes, verdicts, edit, step, low)
        axes.set_title(title, fontsize=10.5, weight="normal", pad=3)
        axes.grid(axis="y", color=GRID)
    panels[0].set_yscale("log")
    panels[0].set_ylim(low, high)
    log_ticks(panels[0].yaxis, low, high, 4)
    panels[0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:,.6g}%")
    last = panels[-1]
    last.set_xlim(0.3, n + 0.7)
    if step >= 13:
        names = [head_name(layer, head) for layer, head in verdicts[["layer", "head"]].itertuples(index=False)]
        last.set_xticks(range(1, n + 1), names, rotation=90)
    else:
        last.set_xticks([])
        last.set_xlabel("edited head, by verdict, then by layer", color=INK)
    for axes in panels:
        axes.tick_params(axis="x", length=0)
    figure.supylabel("change of the final tokens", fontsize=11, color=INK)
    _legend(figure, verdicts, layout)
    return Drawing(figure, marks)


def _draw_panel(axes: Axes, verdicts: pd.DataFrame, edit: str, step: float, floor: float) -> dict[str, list[Mark]]:
    at = np.arange(1, len(verdicts) + 1)
    effect, control = f"effect_{edit}", verdicts["effect_control"].to_numpy(float).clip(min=floor)
    spans = verdicts[[f"{effect}_low", f"{effect}_high"]].to_numpy(float).clip(min=floor)
    half = min(0.38, 4.5 / step)
    draw_spans(axes, *(np.stack([at + end, control], axis=1) for end in (-half, half)), color=INK, linewidth=1.0)
    marks = {}
    for word, group in verdicts.groupby("verdict", sort=False):
        if group.index[0]:
            axes.axvline(group.index[0] + 0.5, color=MUTED, linewidth=0.7, linestyle=(0, (2, 3)))
        heads = group[group[effect].notna()]
        if heads.empty:
            continue
        colour = VERDICT_COLOURS[str(word)]
        draw_spans(
            axes,
            *(np.stack([at, end], axis=1)[heads.index] for end in spans.T),
            color=colour,
            linewidth=min(1.6, max(0.6, 0.4 * step)),
        )
        dots = axes.scatter(
            at[heads.index],
            heads[effect].clip(lower=floor),
            s=min(4.6, max(2.4, step)) ** 2,
            marker=VERDICT_MARKERS[str(word)],
            c=[colour] * len(heads),
            edgecolors="white" if step > 6 else "none",
            linewidths=0.5,
            zorder=3,
            clip_on=False,
        )
        name = f"effects-{edit}-{str(word).replace(' ', '_')}"
        dots.set_gid(name)
        marks[name] = [_mark(row, edit) for row in records(heads)]
    return marks


def draw_spans(axes: Axes, starts: np.ndarray, ends: np.ndarray, **style: Any) -> None:
    """Lines from each start to its end, (x, y) each, as one path, which keeps the page small; NaN draws nothing."""
    points = np.stack([starts, ends, np.full_like(starts, np.nan)], axis=1).reshape(-1, 2)
    axes.plot(points[:, 0], points[:, 1], marker="", **style)


def _limits(verdicts: pd.DataFrame) -> tuple[float, float]:
    names = [f"effect_{edit}{end}" for edit, _ in PANELS for end in ("", "_low", "_high")]
    found = verdicts[[*names, "effect_control"]].to_numpy(float)
    found = found[np.isfinite(found) & (found > 0)]
    if not found.size:
        return 0.001, 1.0
    high = 1.4 * float(found.max())
    return max(float(found.min()) / 1.4, high * 10.0**-_DECADES), high


def _legend(figure: Any, verdicts: pd.DataFrame, layout: Layout) -> None:
    from matplotlib.lines import Line2D

    counts = verdicts["verdict"].value_counts()
    handles = verdict_handles({word: int(counts[word]) for word in VERDICT_COLOURS if word in counts})
    handles += [
        Line2D([], [], color=MUTED, linewidth=1.6, label="95% interval"),
        Line2D([], [], linestyle="none", marker="_", markersize=9, color=INK, label="control"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if layout.narrow else 4)


def verdict_handles(counts: dict[str, int]) -> list[Any]:
    """Legend entries of these words: marker, colour, word and number of heads."""
    from matplotlib.lines import Line2D

    return [
        Line2D(
            [], [], linestyle="none", marker=VERDICT_MARKERS[word], markersize=6.5, color=VERDICT_COLOURS[word],
            markeredgecolor="white", markeredgewidth=0.5, label=f"{word} ({n:,})",
        )
        for word, n in counts.items()
    ]  # fmt: skip


def _mark(row: Row, edit: str) -> Mark:
    span = interval(row[f"effect_{edit}_low"], row[f"effect_{edit}_high"], change)
    text = (
        f"{head_name(row['layer'], row['head'])}, {row['verdict']}: {edit} {change(row[f'effect_{edit}'])} "
        f"({span or 'no interval'}), control {change(row['effect_control'])}"
    )
    return Mark(row["layer"], row["head"], text)


def _caption(data: ReportData) -> str:
    verdicts = shown(data)
    if verdicts.empty:
        return f"n = 0 of {count(len(verdicts), 'edited head')}."
    above = int((verdicts["effect_zero_low"] > verdicts["effect_control_high"]).sum())
    below = int((verdicts["effect_zero_high"] < verdicts["effect_control_low"]).sum())
    largest = records(verdicts)[int(verdicts["effect_zero"].fillna(0).to_numpy().argmax())]
    span = interval(largest["effect_zero_low"], largest["effect_zero_high"], change)
    return (
        f"Relative RMS change of the model’s final tokens, other than the sink, under each edit of one head "
        f"({count(len(verdicts), 'head')}; log scale). Dashes: the control, which removes other keys of up to the same "
        f"mass. Removing what the sink hands out changes clearly more than the control in {count(above, 'head')} and "
        f"clearly less in {count(below, 'head')} (intervals apart); most in "
        f"{head_name(largest['layer'], largest['head'])}: {change(largest['effect_zero'])}"
        f"{f' ({span})' if span else ''}."
    )


EFFECTS = FigureSpec("effects", "What the edits change", _draw, _caption)
