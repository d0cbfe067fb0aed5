from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sinkscope.explain import build_heads, get_rule, summarise
from tests.explain._plant import DIM, floats, plant

MANIFEST: dict[str, Any] = {"model": {"reference": "zoo:tiny"}, "rule": get_rule("fesser").to_dict()}
CAUSES = "these are signatures, not causes, so next: confirm by causal edits before choosing gates"


def _heads(*rows: dict[str, Any]) -> pd.DataFrame:
    """Heads that are nothing special, but for what `rows` say."""
    plain = {
        "layer": 0,
        "n_inputs": 1000,
        "event_rate": 0.0,
        "sink_rate": 0.0,
        "role": "cls",
        "kind": "none",
        "virtual_mass_median": 0.0,
        "nop": 0,
        "broadcast": 0,
        "other": 0,
        "silent": np.nan,
        "constant": np.nan,
        "content": np.nan,
    }
    return pd.DataFrame([plain | {"head": number} | row for number, row in enumerate(rows)]).astype(
        dict.fromkeys(("nop", "broadcast", "other"), "Int64")
    )


def _sink(
    layer: int, role: str | None, shares: tuple[float, float, float] | None = None, **more: Any
) -> dict[str, Any]:
    silent, constant, content = shares or (np.nan,) * 3
    facts = {"layer": layer, "role": role, "kind": "sink", "sink_rate": 0.5}
    return facts | {"silent": silent, "constant": constant, "content": content} | more


def test_a_model_with_sinks() -> None:
    heads = _heads(
        _sink(0, "cls", (0.9, 0.1, 0.0), event_rate=1.0, nop=900, other=100),
        _sink(2, "cls", (0.8, 0.1, 0.1)),
        _sink(3, "patch", (0.0, 0.2, 1.3), event_rate=0.3, broadcast=300),
        _sink(5, "patch", (0.0, 0.7, 0.3)),
        _sink(5, "patch", (0.6, 0.2, 0.2)),
        {"layer": 5, "kind": "uniform"},
        {"layer": 5, "kind": "dead"},
        {"layer": 5, "kind": "dead"},
    )
    assert summarise(MANIFEST, heads) == [
        "5 of 8 heads of zoo:tiny are sink heads (mass >= 0.3 on one token for at least 10% of 1,000 inputs): "
        "3 on patch in layers 3 to 5 and 2 on cls in layers 0 to 2.",
        "Rule fesser finds 1,300 sink events in 8,000 rows (one per input and head): 900 look like a NOP, "
        "300 look like a broadcast and 100 look like neither; not sinks, though they can look alike: "
        "1 head averages uniformly and 2 heads are dead.",
        "Of 5 sink heads whose write could be measured, 3 mostly stay silent, 1 mostly writes one constant vector and "
        f"1 mostly writes what is in the input; {CAUSES} (for silence) or registers (for content).",
    ]


def test_one_of_everything_is_singular() -> None:
    heads = _heads(_sink(3, "bos", (0.0, 1.0, 0.0), n_inputs=1, sink_rate=1.0, event_rate=1.0, nop=1))
    first, second, third = summarise(MANIFEST, heads)
    assert first == (
        "1 of 1 head of zoo:tiny is a sink head (mass >= 0.3 on one token for at least 10% of 1 input): "
        "1 on bos in layer 3."
    )
    assert second == "Rule fesser finds 1 sink event in 1 row (one per input and head): 1 looks like a NOP."
    assert third == "What they write cannot be told, since no head has its sink on 8 inputs; next: measure more inputs."


def test_a_model_without_sinks_is_told_so() -> None:
    assert summarise(MANIFEST, _heads({}, {"kind": "diagonal"}, {"kind": "diagonal"})) == [
        "No head of zoo:tiny is a sink head (mass >= 0.3 on one token for at least 10% of 1,000 inputs; "
        "3 heads measured).",
        "Rule fesser finds no sink event in 3,000 rows (one per input and head); not sinks, though they can look "
        "alike: 2 heads attend mostly to themselves.",
        "There is nothing to explain or to treat; next: if sinks were expected, measure more or longer inputs.",
    ]


def test_rare_events_are_not_passed_over() -> None:
    third = summarise(MANIFEST, _heads({"event_rate": 0.002, "nop": 2}))[2]
    assert third == "No head sinks often enough to sum up what it writes; next: look at the rows of the event table."


def test_many_roles_and_unknown_ones() -> None:
    roles: list[str | None] = ["sep"] * 4 + [None] * 3 + ["cls"] * 2 + ["pad", "word"]
    first = summarise(MANIFEST, _heads(*(_sink(layer, role) for layer, role in enumerate(roles))))[0]
    assert first.endswith(
        ": 4 on sep in layers 0 to 3, 3 on tokens of unknown role in layers 4 to 6, 2 on cls in layers 7 to 8 and "
        "2 on other roles in layers 9 to 10."
    )


@pytest.mark.parametrize(("masses", "text"), [((0.25, 0.75, 0.0), "50%"), ((0.0001, 0.0, 0.0), "less than 0.1%")])
def test_virtual_sinks_are_mentioned_where_there_are_some(masses: tuple[float, ...], text: str) -> None:
    heads = _heads(*({"virtual_mass_median": mass} for mass in masses))
    number = sum(mass > 0 for mass in masses)
    assert f"takes {text} of the attention in the median of the {number} head" in summarise(MANIFEST, heads)[0]
    assert "virtual" not in summarise(MANIFEST, _heads({}))[0]


def test_without_projection_nothing_is_claimed() -> None:
    heads = _heads(_sink(0, "cls", event_rate=0.7, nop=None, broadcast=None, other=None))
    _, second, third = summarise(MANIFEST, heads)
    assert second.endswith(": 700 are of unknown class, since values the rule needs are missing.")
    assert third == (
        "What they write cannot be told, since the output projection of none of them was found; "
        "next: see the gaps in the coverage."
    )


def test_rules_without_classes_and_rules_that_cannot_decide() -> None:
    manifest = MANIFEST | {"rule": get_rule("dlm").to_dict()}
    some = summarise(manifest, _heads({"event_rate": 0.5, "other": 500}))[1]
    assert some == "Rule dlm finds 500 sink events in 1,000 rows (one per input and head) and names no classes of them."
    none = summarise(manifest, _heads({"event_rate": np.nan}))[1]
    assert none == "Rule dlm cannot be decided here, since values it needs are missing in every row."


def test_from_an_artifact_with_a_planted_broadcast_and_a_planted_nop(tmp_path: Path) -> None:
    """Head 0 hands out a vector of its own per input; head 1 routes everything to a null value; head 2 does not
    sink."""
    rng = np.random.default_rng(0)
    values = np.zeros((11, 1, 3, DIM))
    values[:, 0, 0] = rng.standard_normal((11, DIM))
    columns = {
        "mass": floats(0.95, 0.95, 0.1),
        "routed": floats(1, 1, 0),
        "update_ratio": floats(1.2, 0.01, 1),
        "stable_rank": floats(1.1, 1.1, 3),
        "virtual_mass": floats(0, 0, 0),
        "entropy_share": floats(0.1, 0.1, 0.5),
        "diagonal": np.zeros((11, 1, 1), dtype=np.float32),
    }
    artifact = plant(tmp_path, columns, values=values)
    assert summarise(artifact.manifest, build_heads(artifact, get_rule("fesser"))) == [
        "2 of 3 heads of zoo:planted are sink heads (mass >= 0.3 on one token for at least 10% of 11 inputs): "
        "2 on cls in layer 0.",
        "Rule fesser finds 22 sink events in 33 rows (one per input and head): 11 look like a NOP and "
        "11 look like a broadcast.",
        "Of 2 sink heads whose write could be measured, 1 mostly stays silent and 1 mostly writes what is in the "
        f"input; {CAUSES} (for silence) or registers (for content).",
    ]


def test_sinks_on_ordinary_tokens_are_placed() -> None:
    """Three sinks on words or punctuation, two of them the first token; CLS and weak ones do not count."""
    tokens = pd.DataFrame(
        {
            "sink": [0, 0, 7, 0, 5],
            "role": ["word", "punctuation", "word", "cls", "word"],
            "mass": [0.9, 0.3, 0.5, 0.9, 0.29],
        }
    )
    heads = _heads(_sink(1, "word"))
    assert summarise(MANIFEST, heads, tokens)[0].endswith(
        "; 66.7% of the sinks on ordinary tokens are the first token."
    )
    assert "first token" not in summarise(MANIFEST, heads, tokens[tokens["role"] == "cls"])[0]
    assert "first token" not in summarise(MANIFEST, heads)[0]


def _verdict(word: str | None, **more: Any) -> dict[str, Any]:
    facts = {"verdict": word, "confidence": None if word is None else 0.97, "mass_median": 0.5}
    return _sink(1, "cls", (0.9, 0.1, 0.0)) | facts | more


def test_verdicts_and_what_they_call_for_follow() -> None:
    heads = _heads(
        *(_verdict("nop", confidence=confidence) for confidence in (0.95, 0.99)),
        _verdict("broadcast"),
        _verdict("undecided", confidence=0.5),
        _verdict(None),
        {"kind": "uniform", "verdict": "no sink"},
    )
    manifest = {**MANIFEST, "model": {"reference": "zoo:tiny", "modality": "vision"}}
    assert summarise(manifest, heads)[2:] == [
        "Of 5 sink heads whose write could be measured, 5 mostly stay silent; these are signatures, not causes; what "
        "edits show comes next.",
        "Causal edits of 4 sink heads say: 2 park their attention to stay silent (nop), 1 hands out what is in the "
        "input (broadcast) and 1 is undecided; the median confidence of these verdicts is 97%; 1 sink head was not "
        "edited.",
        "They call for gates and registers for 3 heads; reasons, sources and cautions are in the prescription.",
    ]


def test_verdicts_that_call_for_nothing() -> None:
    manifest = {**MANIFEST, "model": {"reference": "zoo:tiny", "modality": "vision"}}
    assert summarise(manifest, _heads(_verdict("undecided", confidence=None)))[3:] == [
        "Causal edits of 1 sink head say: 1 is undecided.",
        "None of these verdicts calls for a treatment.",
    ]
    assert summarise(manifest, _heads(_verdict(None)))[3] == "None of 1 sink head was edited."
    assert len(summarise(manifest, _heads({"verdict": "no sink"}))) == 3
