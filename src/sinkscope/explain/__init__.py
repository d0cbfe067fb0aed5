"""From what was measured to what it means: rules, one row per head with intervals, and the summary."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._classify import classify as classify, is_event as is_event
from ._comparison import (
    Key as Key,
    Rows as Rows,
    compared_table as compared_table,
    measure_table as measure_table,
    measures as measures,
    read_rows as read_rows,
    same_inputs as same_inputs,
)
from ._comparison_heads import (
    STATES as STATES,
    compared_heads as compared_heads,
    is_changed as is_changed,
    same_heads as same_heads,
    states as states,
    transitions as transitions,
)
from ._comparison_order import (
    COMPARED_MEASURES as COMPARED_MEASURES,
    GROUPS as GROUPS,
    Line as Line,
    side_by_side as side_by_side,
)
from ._comparison_words import comparison_sentences as comparison_sentences
from ._contrast import PerInput as PerInput, contrast as contrast, estimate as estimate
from ._heads import build_heads as build_heads
from ._intervals import median_interval as median_interval, wilson as wilson
from ._keys import column_excess as column_excess, sink_by_key as sink_by_key
from ._kinds import (
    DEAD_RATIO as DEAD_RATIO,
    DIAGONAL as DIAGONAL,
    SINK_RATE as SINK_RATE,
    UNIFORM_ENTROPY_SHARE as UNIFORM_ENTROPY_SHARE,
    has_sink as has_sink,
)
from ._prescription import Advice as Advice, Prescription as Prescription, prescribe as prescribe
from ._registry import (
    fesser_literal as fesser_literal,
    get_rule as get_rule,
    load_rule as load_rule,
    register_rule as register_rule,
    rules as rules,
)
from ._rules import Condition as Condition, Rule as Rule
from ._shares import MIN_SINK_INPUTS as MIN_SINK_INPUTS, RESAMPLES as RESAMPLES, sink_shares as sink_shares
from ._summary import summarise as summarise
from ._verdict import (
    MIN_SPLIT_INPUTS as MIN_SPLIT_INPUTS,
    MIN_VERDICT_INPUTS as MIN_VERDICT_INPUTS,
    JudgeOptions as JudgeOptions,
    Verdicts as Verdicts,
    judge as judge,
)
from ._words import CONDITIONS as CONDITIONS, WORDS as WORDS, Thresholds as Thresholds

if TYPE_CHECKING:
    from . import edits as edits


def __getattr__(name: str) -> Any:
    if name == "edits":  # the one part of this room that runs a model: it loads torch on first use
        return import_module("sinkscope.explain.edits")
    raise AttributeError(f"module 'sinkscope.explain' has no attribute {name!r}")
