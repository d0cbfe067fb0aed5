"""A rule as data: when a row is a sink event, and what an event looks like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .._errors import OptionError
from ..artifact import EVENT_COLUMNS

OPERATORS = ("<=", "<", ">=", ">")

DERIVED_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "column_excess": ("input", "layer", "mass", "virtual_mass", "entropy", "entropy_share"),
}
"""Quantities that conditions may name although the event table does not hold them, with the columns they are made
of. `column_excess` is n * mass minus the mean of n * mass over the other keys, see `column_excess`."""

_NUMBERS = tuple(column.name for column in EVENT_COLUMNS if column.kind == "float32")
_CONDITION = re.compile(r"^\s*(\w+)\s*(<=|<|>=|>)\s*(\S+)\s*$")


@dataclass(frozen=True)
class Condition:
    """`column operator threshold`, such as `routed >= 0.9`.

    The threshold is rounded to the column's precision before it is compared, so that a share of nine in ten, stored
    as float32, is `>= 0.9`. A condition on a missing value is neither true nor false.

    **Raises:** `OptionError` when there is no such column or operator, or the threshold is no number.
    """

    column: str
    operator: str
    threshold: float

    def __post_init__(self) -> None:
        names = (*_NUMBERS, *DERIVED_COLUMNS)
        if self.column not in names:
            raise OptionError(
                f"a rule names the column {self.column}", f"one of {', '.join(names)}", "correct the rule"
            )
        if self.operator not in OPERATORS:
            raise OptionError(f"a rule has the operator {self.operator}", "<=, <, >= or >", "correct the rule")
        if self.threshold != self.threshold:
            raise OptionError(f"a rule compares {self.column} with nan", "a number", "correct the rule")

    def __str__(self) -> str:
        return f"{self.column} {self.operator} {self.threshold!r}"


@dataclass(frozen=True)
class Rule:
    """A named rule. All conditions of a list must hold.

    - `name`: what tables and reports call it.
    - `source`: who defined it, to be cited.
    - `event`: when a row is a sink event.
    - `nop`: when an event looks like an adaptive NOP; empty when the rule has no such class.
    - `broadcast`: when an event that is no NOP looks like a broadcast; empty when the rule has no such class.

    Every other event is of class `other`.

    **Raises:** `OptionError` when the name is empty or there is no event condition.
    """

    name: str
    source: str
    event: tuple[Condition, ...]
    nop: tuple[Condition, ...] = ()
    broadcast: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        if not self.name or not self.event:
            raise OptionError(
                f"the rule {self.name!r} has {len(self.event)} event conditions",
                "a name, and one condition or more",
                'write it like: event = "routed >= 0.9"',
            )

    @property
    def thresholds(self) -> dict[str, str]:
        """The conditions in words: `{"event": "routed >= 0.9", "nop": ...}`; classes the rule lacks are left out."""
        lists = {"event": self.event, "nop": self.nop, "broadcast": self.broadcast}
        return {name: " and ".join(map(str, conditions)) for name, conditions in lists.items() if conditions}

    @property
    def columns(self) -> tuple[str, ...]:
        """Event columns that `classify` needs for this rule."""
        names = ["sink"]
        for condition in self.event + self.nop + self.broadcast:
            names += DERIVED_COLUMNS.get(condition.column, (condition.column,))
        return tuple(dict.fromkeys(names))

    def to_dict(self) -> dict[str, str]:
        """The rule as texts, as manifests and rule files hold it."""
        return {"name": self.name, "source": self.source} | self.thresholds

    @classmethod
    def from_dict(cls, texts: Mapping[str, object]) -> Rule:
        """The inverse of `to_dict`.

        **Raises:** `OptionError` when an entry is missing, unknown or cannot be read.
        """
        unknown = sorted(texts.keys() - {"name", "source", "event", "nop", "broadcast"})
        missing = [name for name in ("name", "source", "event") if not texts.get(name)]
        if unknown or missing or not all(isinstance(text, str) for text in texts.values()):
            raise OptionError(
                f"a rule has the entries {', '.join(sorted(texts))}",
                "the texts name, source, event, and if it has classes nop and broadcast",
                'write it like: event = "routed >= 0.9"',
            )
        name, source = str(texts["name"]), str(texts["source"])
        return cls(name, source, *(_parse(str(texts.get(part, ""))) for part in ("event", "nop", "broadcast")))


def _parse(text: str) -> tuple[Condition, ...]:
    return tuple(_parse_one(part) for part in text.split(" and ")) if text.strip() else ()


def _parse_one(text: str) -> Condition:
    match = _CONDITION.match(text)
    try:
        if match:
            return Condition(match[1], match[2], float(match[3]))
    except ValueError:
        pass
    raise OptionError(
        f"a rule has the condition {text!r}",
        "column, operator and number, joined by `and`",
        'write it like: "update_ratio >= 0.5 and stable_rank <= 1.5"',
    )
