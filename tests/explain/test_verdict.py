"""Verdicts on heads whose truth is known by construction."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import false_discovery_control

from sinkscope import SinkError
from sinkscope.artifact import verdict_columns
from sinkscope.explain import JudgeOptions, Thresholds, Verdicts, judge
from sinkscope.explain._evidence import evidence_table, words
from tests.explain._simulation import DIM, Draw, World, constant, content, direction, mixture, simulate

SHARED = direction(np.random.default_rng(7))
QUICK = JudgeOptions(resamples=500)


def _alone(sink: Draw, world: World, options: JudgeOptions = QUICK, seed: int = 1) -> tuple[Any, dict[str, float]]:
    edits, heads, truth = simulate(sink, world, seed, shared=SHARED)
    return judge(edits, heads, options).heads.iloc[0], truth


def _rng() -> np.random.Generator:
    return np.random.default_rng(5)


@lru_cache
def _many() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Five heads of one network, and three that were not edited: one is no sink, one is dead, one is a sink."""
    rng = _rng()
    sinks = [constant(rng, 0.1), content(1), constant(rng, 1), mixture(rng, 0.5, 0.5), content(0.38)]
    made = [simulate(sink, World(n_inputs=17), 3, head=place) for place, sink in enumerate(sinks)]
    unedited = pd.DataFrame(
        {
            "layer": 0,
            "head": [5, 6, 7],
            "kind": ["uniform", "dead", "sink"],
            "sink_rate": [0.0, 0.0, 1.0],
            "constant": np.nan,
            "content": np.nan,
        }
    )
    return pd.concat([edits for edits, _, _ in made]), pd.concat([*(row for _, row, _ in made), unedited])


WORLDS = {
    "plain": World(n_inputs=16),
    "mass 0.35": World(n_inputs=16, mass=0.35),
    "eight inputs of different scale": World(n_inputs=8, spread=0.5),
    "ordinary values without a mean": World(n_inputs=16, common=0.0, n_tokens=53),
    "ordinary values nearly all mean": World(n_inputs=16, common=0.95),
    "only some queries park": World(n_inputs=16, adaptive=0.4),
    "mass 0.99": World(n_inputs=16, mass=0.99),
}
SINKS: dict[str, tuple[Callable[[np.random.Generator], Draw], str]] = {
    "zero": (lambda rng: constant(rng, 0), "nop"),
    "small constant": (lambda rng: constant(rng, 0.1), "nop"),
    "small content": (lambda rng: content(0.15), "nop"),
    "constant": (constant, "bias"),
    "the mean of ordinary values": (lambda rng: lambda _: SHARED, "bias"),
    "against the mean of ordinary values": (lambda rng: lambda _: -SHARED, "bias"),
    "massive constant": (lambda rng: constant(rng, 7), "bias"),
    "content": (lambda rng: content(), "broadcast"),
    "massive content": (lambda rng: content(7), "broadcast"),
    "content on a mean": (lambda rng: mixture(rng, 0.05, 0.95), "broadcast"),
    "mean with some content": (lambda rng: mixture(rng, 0.9, 0.1), "bias"),
}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("sink", SINKS)
def test_mechanisms_get_their_word(sink: str, world: str) -> None:
    make, word = SINKS[sink]
    row, _ = _alone(make(_rng()), WORLDS[world])
    if world.startswith("eight") and row["verdict"] == "undecided":  # few inputs that differ may leave it open
        assert f"leans to {word}" in row["reason"]
        return
    assert row["verdict"] == word, row["reason"]
    assert row["confidence"] > 0.95
    assert row["q_value"] == row["p_value"] <= 0.05
    assert pd.isna(row["n_needed"])


@pytest.mark.parametrize("shares", [(0.0, 0.7), (0.2, 0.2), (0.5, 0.1), (1.5, 1.0), (0.02, 0.03)])
def test_shares_are_those_of_the_values(shares: tuple[float, float]) -> None:
    row, truth = _alone(mixture(_rng(), *shares), World(n_inputs=31, spread=0.3))
    for name, error in (("silent", 0.02), ("constant", 0.1), ("content", 0.1)):
        assert row[name] == pytest.approx(truth[name], abs=error * max(1, sum(shares)))
        assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    energy = truth["constant"] + truth["content"]
    assert row["content_share"] == pytest.approx(truth["content"] / energy, abs=0.06)


def test_shares_without_a_signature_come_from_the_edits() -> None:
    """With values that have nothing in common with the sink's, O - Z is an ordinary value's energy."""
    edits, heads, truth = simulate(mixture(_rng(), 0.3, 0.3), World(n_inputs=64, common=0.0, n_tokens=53), 5)
    row = judge(edits, heads.assign(constant=np.nan, content=np.nan), QUICK).heads.iloc[0]
    for name in ("silent", "constant", "content"):
        assert row[name] == pytest.approx(truth[name], abs=0.15)
    unprojected = judge(edits.assign(write=np.nan), heads.assign(constant=np.nan, content=np.nan), QUICK).heads.iloc[0]
    assert unprojected["silent"] == pytest.approx(truth["silent"], abs=0.15)


def test_effects_of_a_linear_head_are_what_algebra_says() -> None:
    """|v_d - v_s|^2 is twice the content, |v_r - v_s|^2 for a random direction is twice |v_s|^2, and leaving one input
    out of the mean makes it n / (n - 1) times the content."""
    n = 64
    edits, heads, _ = simulate(content(), World(n_inputs=n, common=0.0, n_tokens=53), 2)
    effects = judge(edits, heads, QUICK).effects.set_index(["edit", "measure"])["value"]
    final = effects.xs("final", level="measure") ** 2
    assert final["donor"] / final["zero"] == pytest.approx(2, rel=0.1)
    assert final["ordinary"] / final["zero"] == pytest.approx(2, rel=0.1)
    assert final["random"] / final["zero"] == pytest.approx(2, rel=0.1)
    assert final["mean"] / final["zero"] == pytest.approx(n / (n - 1), rel=0.1)
    assert final["noop"] == pytest.approx(0, abs=1e-20)
    assert effects["donor", "donor_cosine"] > 0.95
    assert effects["zero", "common"] > 0.8


def test_a_head_without_function_is_inert() -> None:
    row, _ = _alone(content(), World(n_inputs=16, gain=1e-4))
    assert row["verdict"] == "inert"
    assert "mass without function" in row["reason"]
    row, _ = _alone(content(), World(n_inputs=16, gain=0.0))
    assert row["verdict"] == "inert"


def test_what_the_network_ignores_is_a_conflict() -> None:
    """The sink writes along one direction of the residual stream that the final tokens do not have."""
    rng = np.random.default_rng([1, 0])
    projection = rng.standard_normal((17, DIM)) / np.sqrt(DIM)
    vector = direction(np.random.default_rng(0))
    ignored = projection @ vector / np.linalg.norm(projection @ vector)
    world = World(n_inputs=16, downstream=lambda tokens: tokens - 0.97 * np.outer(tokens @ ignored, ignored))
    row, _ = _alone(lambda _: vector, world)
    assert row["verdict"] == "undecided"
    assert "conflicts" in row["reason"]
    assert "--freeze-all" in row["reason"]
    assert pd.isna(row["n_needed"])
    assert row["p_value"] == 1


def test_a_saturating_network_keeps_the_words() -> None:
    def squash(tokens: np.ndarray) -> np.ndarray:
        return np.asarray(np.tanh(tokens / 3))

    for sink, word in ((constant(_rng(), 0.1), "nop"), (constant(_rng()), "bias"), (content(), "broadcast")):
        row, _ = _alone(sink, World(n_inputs=16, downstream=squash, residual=3.0))
        assert row["verdict"] == word


def test_between_silent_and_writing() -> None:
    edits, heads, truth = simulate(constant(_rng(), 0.4), World(n_inputs=16), 1, shared=SHARED)
    strength = np.sqrt(truth["constant"] + truth["content"])
    around = Thresholds(nop_strength=0.9 * strength, writing_strength=1.1 * strength)
    row = judge(edits, heads, JudgeOptions(thresholds=around, resamples=500)).heads.iloc[0]
    assert row["verdict"] == "undecided"
    assert row["confidence"] > 0.9
    assert pd.isna(row["n_needed"])
    assert "between silent" in row["reason"]


def test_too_few_inputs() -> None:
    for n in (1, 2, 3, 7):
        row, _ = _alone(content(), World(n_inputs=n))
        assert (row["verdict"], row["n_verified"], row["n_needed"]) == ("undecided", n, 8)
        assert row["reason"].startswith("Too few inputs")
        assert all(
            row[name] is pd.NA or np.isnan(row[name]) for name in ("confidence", "p_value", "q_value", "split_half")
        )
        assert row["effect_zero"] > 0
        assert np.isnan(row["effect_zero_low"]) == (n < 3)


def test_an_undecided_head_says_how_many_inputs_would_decide_it() -> None:
    """With about that many the same head is decided, with a third of them not."""
    sink = mixture(_rng(), 0.37, 0.63)
    rows = [_alone(sink, World(n_inputs=n, spread=0.3), seed=11)[0] for n in (12, 200)]
    few, many = rows
    assert few["verdict"] == "undecided"
    assert "leans to" in few["reason"]
    assert 12 < few["n_needed"] < 600
    assert f"{few['n_needed']:,} inputs" in few["reason"]
    assert many["verdict"] == "broadcast"


def test_halves() -> None:
    row, _ = _alone(content(), World(n_inputs=15))
    assert row["split_half"] is pd.NA
    row, _ = _alone(content(), World(n_inputs=16))
    assert row["split_half"] == np.True_
    disagree = 0
    for seed in range(8):  # as much constant as content
        row, _ = _alone(mixture(_rng(), 0.5, 0.5), World(n_inputs=16), seed=seed)
        disagree += row["split_half"] == np.False_
    assert disagree


def test_all_heads_have_a_row() -> None:
    edits, heads = _many()
    verdicts = judge(edits, heads, QUICK)
    rows = verdicts.heads.set_index("head")
    assert rows["verdict"].iloc[:3].tolist() == ["nop", "broadcast", "bias"]
    assert rows.loc[[5, 6], "verdict"].tolist() == ["no sink", "no sink"]
    assert rows.loc[5, "reason"] == "No sink head: it averages over all keys alike."
    assert rows.loc[7, ["verdict", "reason", "n_verified", "effect_zero"]].isna().all()
    assert verdicts.effects["head"].unique().tolist() == [0, 1, 2, 3, 4]
    assert list(verdicts.heads.columns) == [column.name for column in verdict_columns()]


def test_false_discoveries_are_controlled_over_edited_sinks() -> None:
    edits, heads = _many()
    rows = judge(edits, heads, QUICK).heads
    edited = rows[rows["n_verified"].notna()]
    np.testing.assert_allclose(edited["q_value"], false_discovery_control(edited["p_value"]))
    decided = ~edited["verdict"].isin(["undecided"])
    assert (edited["q_value"][decided] <= 0.05).all()
    strict = judge(edits, heads, JudgeOptions(resamples=500, false_discovery_rate=1e-12)).heads
    assert (strict["verdict"] == "undecided").sum() > (rows["verdict"] == "undecided").sum()
    np.testing.assert_array_equal(strict["confidence"], rows["confidence"])
    # A head that is no sink is outside the family, edited or not.
    other = judge(edits, heads.assign(kind=heads["kind"].where(heads["head"] != 3, "none")), QUICK).heads
    assert other.loc[3, "verdict"] == "no sink"
    assert other["q_value"].isna()[3]
    assert other.loc[3, "n_verified"] == 17
    family = other[other["q_value"].notna()]
    np.testing.assert_allclose(family["q_value"], false_discovery_control(family["p_value"]))


def test_thresholds_can_be_fitted_on_the_evidence() -> None:
    edits, heads = _many()
    table = evidence_table(edits, heads)
    assert table["head"].tolist() == [0, 1, 2, 3, 4]
    assert (table["n"] == 17).all()
    for thresholds in (Thresholds(), Thresholds(broadcast_share=0.2), Thresholds(writing_strength=0.9)):
        options = JudgeOptions(thresholds=thresholds, resamples=500, false_discovery_rate=0.999)
        given = judge(edits, heads, options).heads["verdict"].head(5)
        assert words(table, thresholds).tolist() == given.tolist()


def test_same_seed_same_verdicts() -> None:
    edits, heads = _many()
    first, second = (judge(edits.sample(frac=1, random_state=place), heads, QUICK) for place in (1, 2))
    pd.testing.assert_frame_equal(first.heads, second.heads)
    pd.testing.assert_frame_equal(first.effects, second.effects)
    other = judge(edits, heads, JudgeOptions(resamples=500, seed=1))
    assert not np.array_equal(other.effects["low"], first.effects["low"], equal_nan=True)
    np.testing.assert_array_equal(other.effects["value"], first.effects["value"])


def test_nothing_edited() -> None:
    edits, heads = _many()
    verdicts: Verdicts = judge(edits.head(0), heads, QUICK)
    assert len(verdicts.effects) == 0
    assert verdicts.heads["verdict"].isna().sum() == 6


def test_confidence_is_about_how_often_the_word_is_right() -> None:
    """Over heads between bias and broadcast, 8 inputs each: the word that the most confident half lean to is right
    nearly always, and overall not less often than they say, within three standard errors."""
    rng = np.random.default_rng(3)
    right, stated = [], []
    for seed in range(40):
        share = rng.random()
        row, _ = _alone(mixture(rng, 1 - share, share), World(n_inputs=8, n_tokens=11), seed=seed)
        lean = "broadcast" if row["content_share"] > 0.5 else "bias"
        right.append(lean == ("broadcast" if share > 0.5 else "bias"))
        stated.append(row["confidence"])
    confident = np.array(stated) >= np.median(stated)
    assert np.mean(np.array(right)[confident]) >= 0.95
    assert np.mean(right) > np.mean(stated) - 3 * np.std(right) / np.sqrt(len(right))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resamples": 99}, "99 resamples; expected 100 or more"),
        ({"false_discovery_rate": 0.0}, "the false discovery rate is 0.0; expected a number between 0 and 1"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SinkError, match=message):
        JudgeOptions(**options)


def test_a_dead_head_with_a_sink_is_inert() -> None:
    edits, heads, _ = simulate(constant(_rng(), 1), World(n_inputs=16), 3)
    small = edits.assign(final=edits["final"] * 1e-6, final_norm=edits["final_norm"] * 1e-6)
    dead = judge(small, heads.assign(kind="dead", sink_rate=0.9), QUICK).heads.iloc[0]
    assert (dead["verdict"], dead["confidence"]) == ("inert", 1.0)
    assert dead["reason"].startswith("Mass without function: the head is dead")
    assert judge(small, heads.assign(kind="dead", sink_rate=0.05), QUICK).heads.iloc[0]["verdict"] == "no sink"


@pytest.mark.parametrize("n_inputs", [1, 2, 7])
def test_too_few_inputs_are_said(n_inputs: int) -> None:
    edits, heads, _ = simulate(constant(_rng(), 1), World(n_inputs=11), 3)
    few = edits[edits["input"].isin(sorted(set(edits["input"]))[:n_inputs])]
    row = judge(few, heads, QUICK).heads.iloc[0]
    assert (row["verdict"], row["n_verified"], row["n_needed"]) == ("undecided", n_inputs, 8)
    assert row["reason"].startswith("Too few inputs")
