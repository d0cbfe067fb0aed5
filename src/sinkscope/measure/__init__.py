"""Exact statistics of attention, row by row, in memory linear in tokens."""

from sinkscope.measure._measure import (
    MeasureOptions as MeasureOptions,
    measure as measure,
    write_unusable as write_unusable,
)
from sinkscope.measure._statistics import CallStatistics as CallStatistics, measure_call as measure_call
from sinkscope.measure._writes import WriteGeometry as WriteGeometry, write_geometry as write_geometry
