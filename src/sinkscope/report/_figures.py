"""All figures of the report, in the order of the page."""

from __future__ import annotations

from sinkscope.report._figure import FigureSpec
from sinkscope.report._heatmap import EVENT_RATE, SINK_RATE
from sinkscope.report._norms import NORMS
from sinkscope.report._phenotypes import PHENOTYPES
from sinkscope.report._roles import ROLES
from sinkscope.report._specialisation import SPECIALISATION
from sinkscope.report._writes import WRITES

HEATMAPS: tuple[FigureSpec, ...] = (EVENT_RATE, SINK_RATE)
FIGURES: tuple[FigureSpec, ...] = (ROLES, SPECIALISATION, PHENOTYPES, WRITES, NORMS)
