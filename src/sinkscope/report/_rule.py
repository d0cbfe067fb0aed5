"""A rule in words, and as regions of a plane."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sinkscope.explain import Condition, Rule

RATIOS = ("update_ratio", "value_ratio")
_SIGNS = {"<=": "≤", ">=": "≥", "<": "<", ">": ">"}


def ratio_column(rule: Rule) -> str:
    """The norm ratio that the rule's classes look at; update_ratio for rules without classes."""
    named = [condition.column for condition in (*rule.nop, *rule.broadcast)]
    return next((name for name in named if name in RATIOS), RATIOS[0])


def conditions_text(conditions: Sequence[Condition]) -> str:
    """`update_ratio ≥ 0.5 and stable_rank ≤ 1.5`."""
    return " and ".join(f"{each.column} {_SIGNS[each.operator]}\u00a0{each.threshold:g}" for each in conditions)


def event_text(rule: Rule) -> str:
    """What makes a row an event, in one sentence."""
    return f"A row (one input, layer and head) is an event if {conditions_text(rule.event)}."


def classes_text(rule: Rule) -> str:
    """What makes an event a nop or a broadcast, and what that does not prove."""
    classes = [
        f"{name} if {conditions_text(conditions)}"
        for name, conditions in (("nop", rule.nop), ("broadcast", rule.broadcast))
        if conditions
    ]
    if not classes:
        return "This rule has no classes: every event counts as other."
    return (
        f"An event is of class {', '.join(classes)}, else other; unknown where a value it needs is missing. These "
        "classes describe how a sink looks; what it does only an edit of the model can show."
    )


def limits(conditions: Sequence[Condition], column: str) -> tuple[float, float]:
    """Between which values of `column` the conditions can hold."""
    low, high = -math.inf, math.inf
    for condition in conditions:
        if condition.column == column:
            if condition.operator.startswith("<"):
                high = min(high, condition.threshold)
            else:
                low = max(low, condition.threshold)
    return low, high
