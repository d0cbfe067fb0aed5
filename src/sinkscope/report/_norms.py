"""Hidden-state norm by depth, for sink tokens and ordinary ones."""

from __future__ import annotations

from sinkscope.report._data import ReportData
from sinkscope.report._figure import Drawing, FigureSpec, empty_drawing, layer_axis, log_ticks, new_figure
from sinkscope.report._format import number
from sinkscope.report._style import INK, MUTED, VERMILLION, Layout

_GROUPS = (("other", "median token of the input", MUTED), ("sink", "sink token, rows with mass ≥ 0.3", VERMILLION))


def _draw(data: ReportData, layout: Layout) -> Drawing:
    norms = data.norms
    if norms["other_50"].isna().all():
        return empty_drawing(layout, "Hidden norms were not measured: every value of hidden_norm is null.")
    figure = new_figure(layout, 320)
    axes = figure.add_subplot()
    layers = norms.index.to_list()
    for group, label, colour in _GROUPS:
        low, middle, high = (norms[f"{group}_{q}"] for q in (25, 50, 75))
        axes.vlines(layers, low, high, color=colour, linewidth=4 if len(layers) <= 40 else 2, alpha=0.35)
        axes.plot(layers, middle, color=colour, marker="o", markersize=4, linewidth=1.6, label=label)
    axes.set_yscale("log")
    log_ticks(axes.yaxis, *axes.get_ylim())
    axes.grid(axis="y")
    layer_axis(axes, layers)
    axes.set_ylabel("L2 norm of the block’s input", color=INK)
    figure.legend(loc="outside lower center", ncols=1 if layout.narrow else 2)
    return Drawing(figure)


def _caption(data: ReportData) -> str:
    norms = data.norms
    if norms["other_50"].isna().all():
        return "No hidden norms in this artifact."
    text = (
        "L2 norm of the block’s input before any norm (log scale): points are medians, bars run from the lower to "
        f"the upper quartile; n = {int(norms['sink_n'].sum()):,} sink rows, {int(norms['other_n'].max()):,} inputs per "
        "layer."
    )
    ratio = (norms["sink_50"] / norms["other_50"]).dropna()
    if ratio.empty:
        return f"{text} No row has mass ≥ 0.3, so there are no sink tokens to compare."
    layer = int(str(ratio.idxmax()))
    return (
        f"{text} The ratio of the two medians is largest in layer {layer}: {number(norms.loc[layer, 'sink_50'])} "
        f"against {number(norms.loc[layer, 'other_50'])}, {number(ratio.max())} times."
    )


NORMS = FigureSpec("hidden_norms", "Hidden-state norm by depth", _draw, _caption)
