"""Exact statistics of attention, row by row, in memory linear in tokens."""

from sinkscope.measure._measure import MeasureOptions as MeasureOptions
from sinkscope.measure._measure import measure as measure
from sinkscope.measure._statistics import SINK_MASS as SINK_MASS
from sinkscope.measure._statistics import CallStatistics as CallStatistics
from sinkscope.measure._statistics import measure_call as measure_call
from sinkscope.measure._writes import WriteGeometry as WriteGeometry
from sinkscope.measure._writes import write_geometry as write_geometry
