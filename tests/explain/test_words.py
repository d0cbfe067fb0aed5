from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import ttest_1samp

from sinkscope import SinkError
from sinkscope.explain import WORDS, Thresholds
from sinkscope.explain._power import inputs_needed
from sinkscope.explain._words import CONDITIONS, Evidence, margins, tail_probability, word_codes


def _evidence(**values: float) -> Evidence:
    """A clear broadcast but for what is given."""
    clear = {
        "strength_write": 1.0, "strength_final": 0.9, "share_write": 0.9, "share_final": 0.8,
        "swing_write": 1.0, "swing_final": 1.0, "largest": 0.05,
        "noise": 1e-7, "specific": 1.5, "common": 0.9, "donor_cosine": 0.9,
    }  # fmt: skip
    return Evidence(**{name: np.array([value]) for name, value in (clear | values).items()})


def _word(thresholds: Thresholds | None = None, **values: float) -> str:
    return WORDS[word_codes(margins(_evidence(**values), thresholds or Thresholds()))[0]]


NAN = float("nan")
SILENT = {"strength_write": 0.1, "strength_final": 0.1, "specific": 0.1}
CONSTANT = {"share_write": 0.02, "share_final": 0.05, "swing_write": 0.02, "swing_final": 0.05}


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({}, "broadcast"),
        (CONSTANT, "bias"),
        (SILENT, "nop"),
        (
            {"strength_write": 0.0, "strength_final": 0.0, "specific": 0.0, "share_write": NAN, "share_final": NAN},
            "nop",
        ),
        (SILENT | {"specific": NAN}, "nop"),
        (SILENT | {"specific": 3.1}, "undecided"),
        ({"largest": 0.0009}, "inert"),
        ({"largest": 0.05, "noise": 0.0051}, "inert"),
        (SILENT | {"largest": 0.0}, "inert"),
        ({"largest": NAN}, "undecided"),
        ({"strength_write": 0.36, "strength_final": 0.37}, "undecided"),
        ({"strength_write": 1.0, "strength_final": 0.29}, "undecided"),
        ({"strength_write": 0.2, "strength_final": 0.5}, "undecided"),
        ({"strength_write": 0.1, "strength_final": 0.46}, "undecided"),
        (SILENT | {"strength_write": 0.17, "strength_final": 0.46}, "nop"),
        ({"strength_write": 0.4, "strength_final": 0.6}, "broadcast"),
        ({"strength_write": NAN, "share_write": NAN, "swing_write": NAN}, "broadcast"),
        ({"strength_write": NAN, "strength_final": NAN}, "undecided"),
        ({"share_write": 0.9, "share_final": 0.3, "swing_final": 0.3}, "undecided"),
        ({"share_write": 0.3, "share_final": 0.2, "swing_write": 0.9, "swing_final": 0.9}, "broadcast"),
        ({"share_write": 0.1, "share_final": 0.1}, "bias"),
        ({"share_write": 0.6, "share_final": 0.45, "swing_write": 0.6, "swing_final": 0.45}, "broadcast"),
        ({"common": 0.05}, "undecided"),
        ({"common": NAN, "donor_cosine": NAN}, "broadcast"),
        ({"donor_cosine": -0.3}, "undecided"),
        (CONSTANT | {"donor_cosine": -0.3, "common": 0.05}, "bias"),
    ],
)
def test_words_by_evidence(values: dict[str, Any], word: str) -> None:
    assert _word(**values) == word


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(0, 3, allow_subnormal=False) | st.just(NAN), min_size=11, max_size=11))
def test_no_two_words_hold(values: list[float]) -> None:
    evidence = Evidence(*(np.array([value]) for value in values))
    with np.errstate(all="raise", under="ignore"):
        held = margins(evidence, Thresholds())
    words = [word for word, needed in CONDITIONS.items() if all(held[name][0] > 0 for name in needed)]
    assert len(words) <= 1
    assert WORDS[word_codes(held)[0]] == (words[0] if words else "undecided")


def test_thresholds_move_the_words() -> None:
    assert _word(Thresholds(writing_strength=1.5)) == "undecided"
    assert _word(Thresholds(nop_strength=1.5, writing_strength=1.6, control_ratio=2.0)) == "nop"
    assert _word(Thresholds(broadcast_share=0.95), swing_write=0.5, swing_final=0.5) == "bias"
    assert _word(Thresholds(inert_effect=0.1)) == "inert"
    assert _word(replace(Thresholds(), donor_cosine=0.95)) == "undecided"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nop_strength": 0.6}, "nop_strength is 0.6 and writing_strength 0.45; expected 0 < nop_strength <= writing"),
        ({"nop_strength": 0.0}, "nop_strength is 0.0"),
        ({"broadcast_share": 1.0}, "broadcast_share is 1.0; expected a number between 0 and 1"),
    ],
)
def test_thresholds_that_contradict_each_other(values: dict[str, float], message: str) -> None:
    with pytest.raises(SinkError, match=message):
        Thresholds(**values)


def test_every_field_of_the_evidence_matters_to_some_word() -> None:
    """A NaN in it takes the word away or leaves a guard out; a value at its worst takes it away."""
    worst: dict[str, Any] = {"specific": 9.0, "common": 0.0, "donor_cosine": -1.0, "noise": 1.0, "largest": 0.0}
    for name in (field.name for field in fields(Evidence)):
        base: dict[str, Any] = SILENT if name == "specific" else {}
        if name.startswith("swing"):  # matters where the share alone would not do
            base = {"share_write": 0.3, "share_final": 0.3}
        assert _word(**(base | {name: worst.get(name, 0.0)})) != _word(**base)


def test_tail_probability_is_that_of_a_t_test() -> None:
    """For a plain mean whose resamples have exactly the bootstrap's standard error, sqrt(sum (x - mean)^2) / n."""
    x = np.random.default_rng(0).normal(0.4, 1, 13)
    error = x.std() / np.sqrt(len(x))
    margin = np.concatenate([[x.mean()], x.mean() + error * np.array([-1, 1, -1, 1])])
    expected = ttest_1samp(x, 0, alternative="greater").pvalue
    assert tail_probability(margin, 13) == pytest.approx(expected, rel=1e-9)


def test_tail_probability_at_the_ends() -> None:
    assert tail_probability(np.array([np.inf, np.inf, 1.0]), 9) == 0
    assert tail_probability(np.array([-np.inf, 1.0, 2.0]), 9) == 1
    assert tail_probability(np.array([0.1, 0.1, 0.1]), 9) == 0
    assert tail_probability(np.array([0.0, 0.0, 0.0]), 9) == 1


def test_inputs_needed_is_where_the_p_value_is_reached() -> None:
    weak = np.array([0.1, -0.2, 0.4, 0.1, 0.3])
    strong = np.array([5.0, 4.9, 5.1, 5.0, 5.2])
    needed = inputs_needed([strong, weak], 11, 0.01)
    assert needed is not None
    assert tail_probability(weak, 11, needed) <= 0.01 < tail_probability(weak, 11, needed - 1)
    # A normal approximation by hand: error 0.2 sqrt(11/10) at 11 inputs, 2.33 standard errors wanted.
    error = np.std(weak[1:]) * np.sqrt(11 / 10)
    assert needed == pytest.approx(11 * (2.326 * error / 0.1) ** 2, rel=0.05)


def test_more_inputs_do_not_help_where_a_condition_fails() -> None:
    assert inputs_needed([np.array([-0.1, 0.1, 0.2])], 11, 0.01) is None
    assert inputs_needed([np.array([1e-9, -1.0, 1.0])], 11, 0.01) is None
