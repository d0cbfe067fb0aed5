"""The rules sinkscope knows by name, and how users add theirs."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from .._errors import OptionError
from ._rules import Condition, Rule

_FESSER = "Fesser, Jacobs, Fel, Keller, Kakade 2026, arXiv:2606.08105"
_NOP = (Condition("update_ratio", "<=", 0.2),)
_BROADCAST = (Condition("update_ratio", ">=", 0.5), Condition("stable_rank", "<=", 1.5))

LARGEST_EPSILON = 0.5
"""Above it, two keys could be sinks of the same queries, and only one of them is kept per row."""


def fesser_literal(epsilon: float = 0.1) -> Rule:
    """Definition 1 of Fesser et al. 2026 taken literally: every query has weight >= 1 - epsilon on the sink.

    The paper's counts use 0.5, 0.3, 0.2 and 0.1; the classes are those of its causal study.

    **Raises:** `OptionError` when epsilon is not in (0, 0.5].
    """
    if not 0 < epsilon <= LARGEST_EPSILON:
        raise OptionError(
            f"epsilon is {epsilon}", f"a number above 0 and up to {LARGEST_EPSILON}", "try fesser_literal(0.1)"
        )
    source = f"{_FESSER}, Definition 1 with epsilon = {epsilon:g}"
    return Rule("fesser-literal", source, (Condition("min_mass", ">=", 1 - epsilon),), _NOP, _BROADCAST)


_ROUTED = (Condition("routed", ">=", 0.9),)
_RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("fesser", f"{_FESSER}, relaxed event rule and classes of the causal study", _ROUTED, _NOP, _BROADCAST),
        fesser_literal(),
        Rule(
            "fesser-counts",
            f"{_FESSER}, relaxed event rule and classes of the sink counts",
            _ROUTED,
            (Condition("value_ratio", "<=", 0.2),),
            (Condition("value_ratio", ">=", 0.5),),
        ),
        Rule("gu", "Gu et al. 2025, ICLR, arXiv:2410.10781, epsilon = 0.3", (Condition("mass", ">", 0.3),)),
        Rule(
            "dlm",
            "Rulli et al. 2025, arXiv:2510.15731, epsilon = 3 on column sums",
            (Condition("column_excess", ">", 3.0),),
        ),
    )
}


def rules() -> dict[str, Rule]:
    """All rules by name, the default first."""
    return dict(_RULES)


def get_rule(name: str) -> Rule:
    """The rule of that name; a name that ends in .toml or .json is a file to load it from.

    **Raises:** `OptionError` that lists the names when there is no such rule, or as `load_rule`.
    """
    if Path(name).suffix in (".toml", ".json"):
        return load_rule(Path(name))
    if name not in _RULES:
        raise OptionError(f"there is no rule {name}", f"one of {', '.join(_RULES)}, or a .toml file", "correct --rule")
    return _RULES[name]


def register_rule(rule: Rule) -> None:
    """Make a rule known by its name. Registering an equal rule again does no harm.

    **Raises:** `OptionError` when another rule has that name.
    """
    if _RULES.setdefault(rule.name, rule) != rule:
        raise OptionError(
            f"another rule is already registered as {rule.name}", "a name of its own", "give the rule another name"
        )


def load_rule(path: Path) -> Rule:
    """A rule from a TOML or JSON file with the texts name, source, event, nop, broadcast.

    ```toml
    name = "strict"
    source = "our lab"
    event = "routed >= 0.95"
    nop = "value_ratio <= 0.1"
    broadcast = "value_ratio >= 0.5 and stable_rank <= 1.2"
    ```

    **Raises:** `OptionError` when the file cannot be read or holds no rule.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError) as error:
        raise OptionError(
            f"the rule file {path} cannot be read ({error})", "a TOML or JSON file", "correct the file"
        ) from error
    if not isinstance(content, dict):
        raise OptionError(f"the rule file {path} holds no table", "name, source and event", "correct the file")
    return Rule.from_dict(content)
