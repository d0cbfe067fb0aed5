"""Rules in words and as regions."""

from __future__ import annotations

import math

from sinkscope.explain import get_rule
from sinkscope.report._rule import classes_text, event_text, limits, ratio_column


def test_words() -> None:
    rule = get_rule("fesser")
    assert event_text(rule) == "A row (one input, layer and head) is an event if routed ≥\u00a00.9."
    assert classes_text(rule).startswith(
        "An event is of class nop if update_ratio ≤\u00a00.2, "
        "broadcast if update_ratio ≥\u00a00.5 and stable_rank ≤\u00a01.5, else other;"
    )
    assert classes_text(get_rule("gu")) == "This rule has no classes: every event counts as other."


def test_regions() -> None:
    rule = get_rule("fesser")
    assert limits(rule.nop, "update_ratio") == (-math.inf, 0.2)
    assert limits(rule.nop, "stable_rank") == (-math.inf, math.inf)
    assert limits(rule.broadcast, "update_ratio") == (0.5, math.inf)
    assert limits(rule.broadcast, "stable_rank") == (-math.inf, 1.5)
    assert [ratio_column(get_rule(name)) for name in ("fesser", "fesser-counts", "gu")] == [
        "update_ratio", "value_ratio", "update_ratio"
    ]  # fmt: skip
