"""Which rows are events under a rule, and of what class."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from pandas.arrays import BooleanArray

from .._errors import OptionError
from ._keys import column_excess
from ._rules import Condition, Rule

_OPERATORS = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt}


def is_event(events: pd.DataFrame, rule: Rule) -> pd.Series:
    """Whether each row is a sink event under `rule`: True, False, or missing when a column the rule needs is.

    A row without a candidate key is no event. Conditions join by Kleene's logic: one that fails decides, whatever
    is missing.

    **Arguments:**

    - `events`: event rows with the columns `rule.columns`. `column_excess` looks at whole layers: pass all rows.

    **Raises:** `OptionError` when a column is not there.
    """
    missing = [name for name in rule.columns if name not in events]
    if missing:
        raise OptionError(
            f"the events lack {', '.join(missing)}",
            f"the columns that rule {rule.name} needs: {', '.join(rule.columns)}",
            "read them with artifact.events([...])",
        )
    held = _all_hold(events, rule.event)
    held[events["sink"].isna().to_numpy()] = False
    return pd.Series(held, index=events.index, name="event")


def classify(events: pd.DataFrame, rule: Rule) -> pd.Series:
    """The class of each row's event: `nop`, `broadcast`, `other`; None where there is no event.

    `unknown` stands where the rule cannot decide because a value it needs is missing: whether the row is an event
    (see `is_event`), or of which class (no output projection, hence no update_ratio).

    **Arguments:** and **Raises:** as `is_event`.
    """
    event = is_event(events, rule)
    nop, broadcast = (_all_hold(events, part) if part else _never(events) for part in (rule.nop, rule.broadcast))
    other = ~nop & ~broadcast
    classes = np.full(len(events), "unknown", dtype=object)
    for label, holds in (("other", other), ("broadcast", broadcast), ("nop", nop)):
        classes[holds.to_numpy(dtype=bool, na_value=False)] = label
    classes[event.isna().to_numpy()] = "unknown"
    classes[(~event).to_numpy(dtype=bool, na_value=False)] = None
    return pd.Series(classes, index=events.index, name="class", dtype=object)


def _all_hold(events: pd.DataFrame, conditions: Sequence[Condition]) -> BooleanArray:
    held = [_holds(_values(events, condition.column), condition) for condition in conditions]
    result = held[0]
    for each in held[1:]:
        result = result & each
    return result


def _values(events: pd.DataFrame, column: str) -> Float[np.ndarray, " rows"]:
    return column_excess(events) if column == "column_excess" else events[column].to_numpy()


def _holds(values: Float[np.ndarray, " rows"], condition: Condition) -> BooleanArray:
    threshold = values.dtype.type(condition.threshold)
    return BooleanArray(_OPERATORS[condition.operator](values, threshold), np.isnan(values))


def _never(events: pd.DataFrame) -> BooleanArray:
    return BooleanArray(np.zeros(len(events), dtype=bool), np.zeros(len(events), dtype=bool))
