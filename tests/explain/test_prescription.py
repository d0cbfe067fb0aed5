"""From verdicts to advice: who gets what, on which numbers, from which source."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from sinkscope import SinkError
from sinkscope.explain import Prescription, prescribe

EDITS = ("zero", "mean", "donor", "ordinary", "redirect", "control")


def _prescribed(*heads: dict[str, Any], modality: str = "vision") -> Prescription:
    """The prescription for sink heads with these verdicts, and whatever else is said of them."""
    plain: dict[str, Any] = {
        "layer": 0,
        "kind": "sink",
        "role": "cls",
        "sink_rate": 0.5,
        "mass_median": 0.6,
        "virtual_mass_median": 0.0,
        "confidence": 0.97,
        "n_verified": 24,
        "n_inputs": 128,
        **{f"effect_{edit}": 0.05 for edit in EDITS},
    }
    judged = {"silent": 0.9, "constant": 0.05, "content": 0.05, "n_needed": None}
    table = pd.DataFrame([plain | {"head": number, "verdict": None} | head for number, head in enumerate(heads)])
    verdicts = pd.DataFrame([judged | {"layer": 0, "head": number} | head for number, head in enumerate(heads)])
    verdicts = verdicts.reindex(columns=[*judged, "layer", "head", "verdict"]).astype({"n_needed": "Int64"})
    manifest = {"model": {"reference": "zoo:tiny", "modality": modality}}
    return prescribe(manifest, table.drop(columns=["n_needed"], errors="ignore"), verdicts)


def _words(**counts: int) -> list[dict[str, Any]]:
    return [{"verdict": word} for word, count in counts.items() for _ in range(count)]


def _treated(prescription: Prescription) -> dict[str, int]:
    return {advice.treatment: len(advice.heads) for advice in prescription.advice}


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"nop": 3}, {"gate": 3}),
        ({"broadcast": 2}, {"registers": 2}),
        ({"bias": 2}, {"attention bias": 2}),
        ({"inert": 2}, {"prune": 2}),
        ({"nop": 3, "broadcast": 2}, {"both": 5}),
        ({"nop": 1, "broadcast": 9}, {"both": 10}),
        ({"nop": 1, "broadcast": 10}, {"registers": 10, "gate": 1}),
        ({"nop": 2, "bias": 5, "inert": 7}, {"attention bias": 5, "gate": 2, "prune": 7}),
        ({"undecided": 2}, {"nothing": 0}),
    ],
)
def test_every_mechanism_has_its_treatment(counts: dict[str, int], expected: dict[str, int]) -> None:
    found = _treated(_prescribed(*_words(**counts)))
    assert found == expected
    assert list(found) == list(expected)


def test_gates_come_with_the_caution_that_they_can_raise_broadcast_sinks() -> None:
    for words in ({"nop": 1}, {"nop": 1, "broadcast": 1}):
        (advice,) = _prescribed(*_words(**words)).advice
        assert any(
            "Gates can raise broadcast sinks" in caution and "0.09 to 3.80" in caution for caution in advice.cautions
        )
        assert any("arXiv:2606.08105" in source for source in advice.sources)


@pytest.mark.parametrize("word", ["nop", "broadcast", "bias", "inert"])
def test_every_treatment_names_its_source_and_a_caution(word: str) -> None:
    for modality in ("vision", "text"):
        for advice in _prescribed({"verdict": word}, modality=modality).advice:
            assert advice.text and advice.sources and advice.cautions
            assert all("arXiv:" in source or "transformers" in source for source in advice.sources)


def test_evidence_is_the_medians_of_the_heads_concerned() -> None:
    effects = [dict(zip([f"effect_{edit}" for edit in EDITS], row, strict=True)) for row in (
        (0.002, 0.001, 0.003, 0.06, 0.05, 0.02),
        (0.004, 0.001, 0.003, 0.08, 0.05, 0.02),
        (0.9, 0.9, 0.9, 0.9, 0.9, 0.9),
    )]  # fmt: skip
    heads: list[dict[str, Any]] = [{"verdict": "nop"} | effects[0], {"verdict": "nop", "n_verified": 9} | effects[1]]
    heads.append({"verdict": "bias"} | effects[2])
    gate, bias = _prescribed(*heads).advice
    assert gate.treatment == "gate"
    assert gate.heads == ((0, 0), (0, 1))
    assert gate.title == "Gate 2 heads: L0.H0, L0.H1"
    assert gate.evidence == (
        "2 heads are nop (confidence 97%, 9 to 24 inputs each); median change of the final tokens: nothing in place "
        "of what the sink hands out 0.30%, its mean over other inputs 0.10%, another input’s sink value 0.30%, an "
        "ordinary value 7.0%, attention redirected to the other tokens 5.0%, other keys of the same mass removed 2.0%.",
        "Handed out there, an ordinary token being 100%: silent 90%, constant 5.0%, content 5.0% (medians).",
    )
    assert "1 head is bias" in bias.evidence[0] and "90%" in bias.evidence[0]


def test_effects_that_were_not_measured_are_not_told() -> None:
    (advice,) = _prescribed({"verdict": "inert", "effect_donor": np.nan, "effect_zero": 0.00001}).advice
    assert "another input" not in advice.evidence[0]
    assert "hands out under 0.01%" in advice.evidence[0]
    assert len(advice.evidence) == 1


def test_registers_that_are_there_already_are_not_advised_again() -> None:
    (advice,) = _prescribed({"verdict": "broadcast", "role": "register"}).advice
    assert (advice.treatment, advice.heads) == ("nothing", ((0, 0),))
    assert advice.text == "These heads hand out what this input is about, and their sink is a register already."


def test_text_models_may_have_a_learned_sink_unless_there_is_one() -> None:
    assert _treated(_prescribed(*_words(nop=2), modality="text")) == {"gate": 2, "learned sink": 2}
    assert _treated(_prescribed({"verdict": "nop", "virtual_mass_median": 0.2}, modality="text")) == {"gate": 1}
    gate, _ = _prescribed({"verdict": "nop", "role": "bos"}, modality="text").advice
    assert any("StreamingLLM" in caution for caution in gate.cautions)
    (registers,) = _prescribed({"verdict": "broadcast"}, modality="text").advice
    assert "The evidence for registers is from vision models; this is a text model." in registers.cautions


def test_dormant_nop_heads_are_candidates_for_pruning() -> None:
    parked = {"verdict": "nop", "mass_median": 0.97, "sink_rate": 1.0}
    gate, prune = _prescribed(parked, {"verdict": "nop", "mass_median": 0.97}).advice
    assert len(gate.heads) == 2 and prune.heads == ((0, 0),)
    assert prune.evidence[-1] == (
        "1 head is dormant on these inputs: at least 95% of the attention on a silent sink, on 95% of the inputs "
        "or more."
    )
    assert any("Remove the heads together" in caution for caution in prune.cautions)


def test_few_heads_among_many_are_said_to_be_few() -> None:
    told = "This is about 1 of 11 sink heads: it may not be worth the training."
    few = {advice.treatment: advice.cautions for advice in _prescribed(*_words(broadcast=10, nop=1)).advice}
    assert told in few["gate"] and told not in few["registers"]


def test_what_is_open_is_told_with_what_would_decide_it() -> None:
    prescription = _prescribed(
        {"verdict": "nop"},
        {"verdict": "undecided", "n_needed": 40},
        {"verdict": "undecided", "n_needed": 64},
        {"verdict": "undecided", "n_needed": 8, "sink_rate": 0.03},
        {"verdict": "undecided", "n_needed": 8, "sink_rate": 0.05},
        {"verdict": "undecided"},
        {},
        {"kind": "uniform", "verdict": "no sink"},
    )
    assert prescription.undecided == (
        "5 heads are undecided, L0.H1, L0.H2, L0.H3, L0.H4, L0.H5. "
        "For 2 of them: sinkscope verify DIR --again --inputs 64. "
        "For 2 of them: diagnose about 267 inputs, since no verdict can be had from the few on which they have a sink. "
        "For 1 of them: more inputs will not help, the table of verdicts says what may.",
        "1 sink head was not edited, L0.H6.",
    )


def test_without_sinks_there_is_nothing_to_treat() -> None:
    (none,) = _prescribed({"kind": "none", "verdict": "no sink"}).advice
    assert (none.title, none.text) == ("Nothing to treat", "There is no sink head.")
    (open_,) = _prescribed({"verdict": "undecided"}).advice
    assert open_.text == "None of 1 sink head has a verdict that calls for a treatment."


def test_many_heads_are_named_up_to_a_dozen() -> None:
    (advice,) = _prescribed(*_words(nop=17)).advice
    assert advice.title.endswith("L0.H11 and 5 more") and len(advice.heads) == 17


def test_it_prints_in_lines_and_shows_itself_escaped() -> None:
    prescription = _prescribed(*_words(nop=2, broadcast=1, undecided=1))
    text, page = str(prescription), prescription._repr_html_()
    assert text.startswith("Prescription for zoo:tiny\n\n1. Gates and registers for 3 heads: L0.H0, L0.H1, L0.H2\n")
    assert max(map(len, text.splitlines())) <= 100
    for words in (
        "Measured: 2 heads are nop",
        "Source: Fesser",
        "Caution: Gates can raise",
        "Open: 1 head is undecided",
    ):
        assert words in text
    for advice in prescription.advice:
        for told in (*advice.evidence, *advice.sources, *advice.cautions):
            assert told in page
    hostile = Prescription("zoo:tiny", prescription.advice, ("<b>open</b>",))._repr_html_()
    assert "&lt;b&gt;open&lt;/b&gt;" in hostile and "<b>" not in hostile


def test_heads_without_verdicts_are_refused() -> None:
    heads = pd.DataFrame({"kind": ["sink"]})
    with pytest.raises(SinkError) as raised:
        prescribe({"model": {"reference": "zoo:tiny", "modality": "text"}}, heads, pd.DataFrame())
    assert raised.value.found == "the heads have no verdicts"
    assert raised.value.next_step == "run `sinkscope verify DIR`"
