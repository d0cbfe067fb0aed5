"""Exact statistics of attention, row by row, in memory linear in tokens."""

from sinkscope.measure._measure import (
    MeasureOptions as MeasureOptions,
    measure as measure,
    write_unusable as write_unusable,
)
from sinkscope.measure._outliers import Outliers as Outliers, outliers as outliers
from sinkscope.measure._residual import (
    ResidualStream as ResidualStream,
    Stack as Stack,
    find_stack as find_stack,
    looks_back as looks_back,
)
from sinkscope.measure._statistics import CallStatistics as CallStatistics, measure_call as measure_call
from sinkscope.measure._writes import WriteGeometry as WriteGeometry, write_geometry as write_geometry
