"""A comparison in a few plain sentences, built from its tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from ._comparison_heads import is_changed, transitions

_KEPT = ("none", "uniform", "diagonal", "dead")
_TOLD = 4


def comparison_sentences(measures: pd.DataFrame, heads: pd.DataFrame, letters: Sequence[str], model: int) -> list[str]:
    """What changes from the base to one diagnosis: its sinks, its heads, its norms, its outputs.

    **Arguments:**

    - `measures`, `heads`: of the comparison.
    - `letters`: what the diagnoses are called.
    - `model`: number of the diagnosis.
    """
    found = _Numbers(measures, letters, model)
    said = [found.sinks(), found.norms(), found.writes(), found.outliers(), found.agreement(), found.task()]
    said.insert(1, _heads(heads[heads["model"] == model], letters, model))
    return [sentence for sentence in said if sentence]


class _Numbers:
    def __init__(self, measures: pd.DataFrame, letters: Sequence[str], model: int) -> None:
        self._base, self._own = letters[0], letters[model]
        whole = measures[measures["layer"].isna()]
        self._tables = [
            {(row["group"], row["measure"]): row for row in whole[whole["model"] == number].to_dict("records")}
            for number in (0, model)
        ]
        self._layers = measures[measures["layer"].notna()]
        self._model = model

    def sinks(self) -> str:
        heads, rate = ("sinks", "sink_heads"), ("sinks", "sink_rate")
        count = self._value(heads, 1, _count)
        return (
            f"{self._own} has {count} sink {'head' if count == '1' else 'heads'} and {self._base} "
            f"{self._value(heads, 0, _count)} ({self._change(heads, _signed_count)}); a sink takes 0.3 of the "
            "attention or more in "
            f"{self._value(rate, 1, _percent)} of the rows, in {self._base} {self._value(rate, 0, _percent)} "
            f"({self._change(rate, _points)})."
        )

    def norms(self) -> str:
        names = {"value_ratio": "values of sinks", "hidden_ratio": "hidden states of sinks"}
        told = [
            f"{what} are {self._value(('norms', name), 1, _times)} as long as those of other tokens, "
            f"in {self._base} {self._value(('norms', name), 0, _times)}"
            for name, what in names.items()
            if self._known(("norms", name))
        ]
        return f"{_capital('; '.join(told))}." if told else ""

    def writes(self) -> str:
        shares = [
            f"{name} {self._value(('writes', name), 0, _plain)} → {self._value(('writes', name), 1, _plain)}"
            for name in ("silent", "constant", "content")
            if self._known(("writes", name))
        ]
        return f"What sinks write, median over sink heads: {', '.join(shares)}." if shares else ""

    def outliers(self) -> str:
        table = self._layers[self._layers["measure"] == "largest"]
        peaks = [table[table["model"] == number].dropna(subset=["value"]) for number in (0, self._model)]
        if any(peak.empty for peak in peaks):
            return ""
        first, second = (peak.nlargest(1, "value").to_dict("records")[0] for peak in peaks)
        return (
            f"The largest activation of the residual stream is {_plain(second['value'])} in {self._own} (layer "
            f"{second['layer']}) and {_plain(first['value'])} in {self._base} (layer {first['layer']})."
        )

    def agreement(self) -> str:
        change, cosine = ("outputs", "final_change"), ("outputs", "final_cosine")
        if change not in self._tables[1]:
            return ""
        parts = [
            f"Final tokens of {self._own} differ from those of {self._base} by {self._value(change, 1, _percent)} "
            f"(root mean square), cosine {self._value(cosine, 1, _cosine)}"
        ]
        kl, top = ("outputs", "output_kl"), ("outputs", "output_top1")
        if kl in self._tables[1]:
            parts.append(
                f"the KL divergence of the outputs is {self._value(kl, 1, _plain)} nats, and the first choice is the "
                f"same in {self._value(top, 1, _percent)}"
            )
        return f"{'; '.join(parts)}."

    def task(self) -> str:
        told = []
        for name, form, signed in (("loss", _plain, _signed), ("accuracy", _percent, _points)):
            key = ("outputs", name)
            if self._known(key):
                told.append(
                    f"{name} {self._value(key, 0, form)} → {self._value(key, 1, form)} ({self._change(key, signed)})"
                )
        return f"{_capital(', '.join(told))}." if told else ""

    def _known(self, key: tuple[str, str]) -> bool:
        return all(key in table and not math.isnan(table[key]["value"]) for table in self._tables)

    def _value(self, key: tuple[str, str], number: int, form: Any) -> str:
        return str(form(self._tables[number][key]["value"]))

    def _change(self, key: tuple[str, str], form: Any) -> str:
        row = self._tables[1][key]
        told = str(form(row["change"]))
        if math.isnan(row["change_low"]):
            return told
        unit = " points" if told.endswith(" points") else ""
        low, high = (str(form(row[end])).removesuffix(unit) for end in ("change_low", "change_high"))
        return f"{told.removesuffix(unit)}{unit}, 95% interval {low} to {high}"


def _heads(heads: pd.DataFrame, letters: Sequence[str], model: int) -> str:
    if heads.empty:
        return ""
    moved = heads[is_changed(heads)]
    if moved.empty:
        return f"Every one of {len(heads):,} heads is in {letters[model]} what it is in {letters[0]}."
    counts = transitions(moved).sort_values("heads", ascending=False, kind="stable")
    told = [
        f"{row['heads']:,} from {_state(row['before'])} to {_state(row['after'])}"
        for row in counts.head(_TOLD).to_dict("records")
    ]
    rest = int(counts["heads"].iloc[_TOLD:].sum())
    more = [f"{rest:,} otherwise"] if rest else []
    verb = "is" if len(moved) == 1 else "are"
    return f"{len(moved):,} of {len(heads):,} heads {verb} something else: {', '.join([*told, *more])}."


def _state(word: Any) -> str:
    return "no sink" if word == "none" else f"no sink ({word})" if word in _KEPT else str(word)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _signed_count(value: float) -> str:
    return f"{value:+,.0f}".replace("-", "−")


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _points(value: float) -> str:
    return f"{100 * value:+.3g} points".replace("-", "−")


def _plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")


def _cosine(value: float) -> str:
    return f"{value:.4f}"


def _times(value: float) -> str:
    return f"{_plain(value)} times"
