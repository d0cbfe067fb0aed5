"""Which token is the sink, by depth: the hand-off from CLS to patches."""

from __future__ import annotations

import pandas as pd

from sinkscope.report._data import ReportData
from sinkscope.report._figure import Drawing, FigureSpec, empty_drawing, layer_axis, new_figure
from sinkscope.report._format import percent
from sinkscope.report._style import INK, MUTED, ROLE_COLOURS, Layout


def _role_counts(data: ReportData) -> pd.DataFrame:
    present = [role for role in ROLE_COLOURS if role in data.roles]
    return data.roles[present]


def _draw(data: ReportData, layout: Layout) -> Drawing:
    from matplotlib.ticker import PercentFormatter

    if not data.sinks:
        return empty_drawing(layout, "No sink whose role could be shown.")
    counts = _role_counts(data)
    layers = counts.index.to_list()
    figure = new_figure(layout, 600 if layout.narrow else 320)
    grid = (2, 1) if layout.narrow else (1, 2)
    left, right = figure.subplots(*grid)
    of_rows = counts.div(data.roles["rows"], axis=0)
    sinks = counts.sum(axis=1)
    of_sinks = counts.div(sinks.where(sinks > 0), axis=0).fillna(0.0)
    for axes, shares, title in ((left, of_rows, "share of all rows"), (right, of_sinks, "share of sink rows")):
        bottom = pd.Series(0.0, index=counts.index)
        for role in counts.columns:
            axes.bar(layers, shares[role], width=0.82, bottom=bottom, color=ROLE_COLOURS[role], label=role, linewidth=0)
            bottom = bottom + shares[role]
        axes.set_title(title)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.grid(axis="y")
        layer_axis(axes, layers)
    events = data.roles["events"] / data.roles["rows"]
    left.plot(layers, events, color=INK, linewidth=1.2, marker="o", markersize=3.2, label=f"events ({data.rule.name})")
    left.set_ylim(0, max(0.05, 1.06 * float(max(of_rows.sum(axis=1).max(), events.max()))))
    right.set_ylim(0, 1)
    for layer in sinks.index[sinks == 0]:
        right.text(layer, 0.02, "none", ha="center", va="bottom", rotation=90, fontsize=9, color=MUTED)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 if layout.narrow else 6)
    return Drawing(figure)


def _caption(data: ReportData) -> str:
    if not data.sinks:
        return f"None of the {data.rows:,} rows has mass ≥ 0.3."
    counts = _role_counts(data)
    totals = counts.sum().sort_values(ascending=False, kind="stable")
    parts = ", ".join(f"{role} {percent(n / data.sinks)}" for role, n in totals.items())
    leaders = counts[counts.sum(axis=1) > 0].idxmax(axis=1)
    runs: list[list[str | int]] = []
    for key, role in leaders.items():
        layer = int(str(key))
        if runs and runs[-1][1:] == [layer - 1, role]:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer, str(role)])
    said = ", ".join(f"{role} in layer {a}" if a == b else f"{role} in layers {a} to {b}" for a, b, role in runs[:6])
    more = f" and {len(runs) - 6} more changes" if len(runs) > 6 else ""
    return (
        f"Role of the sink token in the {data.sinks:,} rows with mass ≥ 0.3 ({percent(data.sinks / data.rows)} of all "
        f"{data.rows:,}): {parts}. Most frequent role: {said}{more}. The line gives the share of rows that are events "
        f"under {data.rule.name} ({data.events:,})."
    )


ROLES = FigureSpec("sink_roles", "Sink role by depth", _draw, _caption)
