"""All figures of the report, in the order of the page."""

from __future__ import annotations

from sinkscope.report._data import ReportData
from sinkscope.report._effects import EFFECTS
from sinkscope.report._figure import FigureSpec
from sinkscope.report._heatmap import EVENT_RATE, SINK_RATE
from sinkscope.report._norms import NORMS
from sinkscope.report._phenotypes import PHENOTYPES
from sinkscope.report._roles import ROLES
from sinkscope.report._specialisation import SPECIALISATION
from sinkscope.report._ternary import TERNARY
from sinkscope.report._verdict_map import VERDICT_MAP
from sinkscope.report._writes import WRITES

HEATMAPS: tuple[FigureSpec, ...] = (EVENT_RATE, SINK_RATE)
FIGURES: tuple[FigureSpec, ...] = (ROLES, SPECIALISATION, PHENOTYPES, WRITES, NORMS)


def heatmaps(data: ReportData) -> tuple[FigureSpec, ...]:
    """The maps of layer x head that can be drawn of `data`."""
    return (VERDICT_MAP, *HEATMAPS) if data.verified else HEATMAPS


def figures(data: ReportData) -> tuple[FigureSpec, ...]:
    """The other figures that can be drawn of `data`."""
    return (EFFECTS, TERNARY, *FIGURES) if data.verified else FIGURES
