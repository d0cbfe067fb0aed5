"""The verdict on every sink head: a word, how sure it is, and what it rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import false_discovery_control

from .._errors import OptionError
from ..artifact import SHARES
from ._effects import HeadEffects, effect_table, head_effects
from ._evidence import Signature, gather, shares, signatures
from ._kinds import has_sink
from ._power import inputs_needed
from ._reasons import dead, decided, leans, no_sink, too_few, undecided
from ._resamples import intervals, resample_weights
from ._words import CONDITIONS, WORDS, Column, Evidence, Thresholds, margins, tail_probability, word_codes

MIN_VERDICT_INPUTS = 8
"""A head is judged from this many edited inputs on."""

MIN_SPLIT_INPUTS = 16
"""The two halves of the inputs are compared from this many on."""

HEAD_EFFECTS = ("zero", "mean", "donor", "ordinary", "redirect", "control")
"""Edits whose effect on the final tokens stands in the table of heads."""


@dataclass(frozen=True)
class JudgeOptions:
    """How heads are judged.

    - `thresholds`: where one word ends and another begins.
    - `resamples`: of the bootstrap over inputs.
    - `seed`: of the bootstrap and of the halves.
    - `false_discovery_rate`: share of the words given that may be wrong by chance (Benjamini and Hochberg 1995).

    **Raises:** `OptionError` when a number cannot be used.
    """

    thresholds: Thresholds = field(default_factory=Thresholds)
    resamples: int = 2000
    seed: int = 0
    false_discovery_rate: float = 0.05

    def __post_init__(self) -> None:
        if self.resamples < 100:
            raise OptionError(f"{self.resamples} resamples", "100 or more", "try resamples=2000")
        if not 0 < self.false_discovery_rate < 1:
            raise OptionError(
                f"the false discovery rate is {self.false_discovery_rate}", "a number between 0 and 1", "try 0.05"
            )


@dataclass(frozen=True)
class Verdicts:
    """`heads`: one row per head of the diagnosis. `effects`: one row per edited head, edit and measure."""

    heads: pd.DataFrame
    effects: pd.DataFrame


@dataclass(frozen=True)
class _Judged:
    """One edited head before the other heads are looked at."""

    head: HeadEffects
    evidence: Evidence
    margins: Mapping[str, Column]
    word: str
    confidence: float
    p_value: float
    halves_agree: bool | None
    numbers: Mapping[str, float]
    effects: pd.DataFrame

    @property
    def n(self) -> int:
        return len(self.head.inputs)


def judge(edits: pd.DataFrame, heads: pd.DataFrame, options: JudgeOptions | None = None) -> Verdicts:
    """Judge every edited head.

    The word is the one whose conditions (see `CONDITIONS`) hold for the effects averaged over the inputs.
    `confidence` is the share of bootstrap resamples of the inputs that give the same word. `p_value` is the largest
    over the word's conditions of the one-sided p-value that the condition does not hold (an intersection-union test,
    Berger 1982, Technometrics 24:295), and at least 1 - confidence; 1 for a head between words. Heads whose
    Benjamini-Hochberg adjusted p-value, `q_value`, is above the false discovery rate are `undecided`; `confidence`
    then still is that of the word they lean to, which `reason` names.

    **Arguments:**

    - `edits`: rows as `read_edits` gives them.
    - `heads`: the table of heads; `kind`, `sink_rate`, `constant` and `content` are used.
    - `options`: see `JudgeOptions`.

    **Returns:** `heads`: per row of `heads`, `layer, head, verdict, confidence, n_verified, p_value, q_value,
    split_half, n_needed`, the shares and `specific` and the effects on the final tokens with `_low` and `_high`, and
    `reason`. The verdict is `no sink` for heads without one, null for heads with one that were not edited, and `inert`
    for dead heads that were: they write next to nothing, whatever they attend to.
    `effects`: see `effect_table`.
    """
    options = options or JudgeOptions()
    places = list(zip(heads["layer"].tolist(), heads["head"].tolist(), strict=True))
    kinds = dict(zip(places, heads["kind"].tolist(), strict=True))
    sinks = dict(zip(places, has_sink(heads).tolist(), strict=True))
    known = signatures(heads)
    judged = {
        (head.layer, head.head): _judge_head(head, known[head.layer, head.head], options)
        for head in head_effects(edits)
    }
    counted = {
        place: result for place, result in judged.items() if kinds[place] == "sink" and result.n >= MIN_VERDICT_INPUTS
    }
    p_values = np.array([result.p_value for result in counted.values()])
    q_values = false_discovery_control(p_values) if len(p_values) else p_values
    q_value = dict(zip(counted, q_values, strict=True))
    n_passed = int(np.count_nonzero(q_values <= options.false_discovery_rate))
    # The p-value with which one more head would be among those that pass.
    within = options.false_discovery_rate * min(n_passed + 1, len(counted)) / max(len(counted), 1)
    rows = []
    for place, kind in kinds.items():
        result = judged.get(place)
        row: dict[str, object] = {"layer": place[0], "head": place[1]}
        if result is not None:
            row |= {**result.numbers, "n_verified": result.n}
        if not sinks[place]:
            row |= {"verdict": "no sink", "reason": no_sink(kind)}
        elif kind == "dead" and result is not None:
            row |= {"verdict": "inert", "confidence": 1.0, "reason": dead(result.evidence)}
        elif result is not None:
            row |= _verdict(result, q_value.get(place), within, options)
        rows.append(row)
    effects = [result.effects for result in judged.values()]
    return Verdicts(
        pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS),
        pd.concat(effects, ignore_index=True) if effects else _no_effects(),
    )


def _verdict(result: _Judged, q_value: float | None, within: float, options: JudgeOptions) -> dict[str, object]:
    """The columns of a sink head that was edited. No q-value: too few inputs."""
    if q_value is None:
        why = too_few(result.n, MIN_VERDICT_INPUTS)
        return {"verdict": "undecided", "n_needed": MIN_VERDICT_INPUTS, "reason": why}
    needed, verdict = None, "undecided"
    if result.word == "undecided":
        why = undecided(result.margins, result.evidence, options.thresholds)
    elif q_value <= options.false_discovery_rate:
        verdict, why = result.word, decided(result.word, result.evidence, result.n)
    else:
        conditions = [result.margins[name][: 1 + options.resamples] for name in CONDITIONS[result.word]]
        needed = inputs_needed(conditions, result.n, within)
        why = leans(result.word, result.confidence, q_value, needed)
    return {
        "verdict": verdict,
        "confidence": result.confidence,
        "p_value": result.p_value,
        "q_value": q_value,
        "split_half": result.halves_agree,
        "n_needed": needed,
        "reason": why,
    }


def _judge_head(head: HeadEffects, signature: Signature, options: JudgeOptions) -> _Judged:
    n, thresholds = len(head.inputs), options.thresholds
    rows = _weights(n, options.resamples, options.seed)
    evidence = gather(head, rows, signature)
    held = margins(evidence, thresholds)
    codes = word_codes(held)
    word = WORDS[codes[0]]
    resampled = slice(1, 1 + options.resamples)
    confidence = float(np.mean(codes[resampled] == codes[0]))
    p_value = 1.0
    if word != "undecided" and n >= MIN_VERDICT_INPUTS:
        tails = [tail_probability(held[name][: 1 + options.resamples], n) for name in CONDITIONS[word]]
        p_value = max(*tails, 1 - confidence)
    halves_agree = None
    if n >= MIN_SPLIT_INPUTS:
        halves = word_codes(margins(gather(head, _halves(n, options.seed), signature), thresholds))
        halves_agree = bool(halves[1] == halves[2])
    effects = effect_table(head, rows)
    return _Judged(
        head, evidence, held, word, confidence, p_value, halves_agree, _numbers(head, evidence, effects), effects
    )


def _numbers(head: HeadEffects, evidence: Evidence, effects: pd.DataFrame) -> dict[str, float]:
    """Shares, `specific` and effects on the final tokens, with their intervals."""
    n = len(head.inputs)
    statistics = shares(evidence) | {"specific": evidence.specific}
    columns = np.stack(list(statistics.values()), axis=1)
    low, high = intervals(columns, n, np.full(columns.shape[1], n), ratios=True)
    numbers: dict[str, float] = {}
    for place, name in enumerate(statistics):
        numbers |= {name: columns[0, place], f"{name}_low": low[place], f"{name}_high": high[place]}
    final = effects[effects["measure"] == head.final_measure].set_index("edit")
    for edit in HEAD_EFFECTS:
        for end, source in (("", "value"), ("_low", "low"), ("_high", "high")):
            numbers[f"effect_{edit}{end}"] = final[source].get(edit, np.nan)
    return numbers


@lru_cache(maxsize=128)
def _weights(n: int, resamples: int, seed: int) -> Float[np.ndarray, "rows inputs"]:
    return resample_weights(n, resamples, seed)


def _halves(n: int, seed: int) -> Float[np.ndarray, "3 inputs"]:
    """Weights of all inputs, and of two halves of them, split at random."""
    first = np.isin(np.arange(n), np.random.default_rng([seed, n, 2]).permutation(n)[: n // 2])
    return np.stack([np.full(n, 1 / n), first / first.sum(), ~first / (~first).sum()])


def _no_effects() -> pd.DataFrame:
    kinds = dict.fromkeys(("layer", "head"), "int32") | dict.fromkeys(("edit", "measure"), "str")
    kinds |= dict.fromkeys(("value", "low", "high"), "float64") | {"n": "int64"}
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in kinds.items()})


def _ends(names: tuple[str, ...]) -> dict[str, str]:
    return {f"{name}{end}": "float64" for name in names for end in ("", "_low", "_high")}


_COLUMNS: Mapping[str, str] = {
    "layer": "int32",
    "head": "int32",
    "verdict": "str",
    "confidence": "float64",
    "n_verified": "Int64",
    "p_value": "float64",
    "q_value": "float64",
    "split_half": "boolean",
    "n_needed": "Int64",
    **_ends((*SHARES, "specific")),
    "reason": "str",
    **_ends(tuple(f"effect_{edit}" for edit in HEAD_EFFECTS)),
}
