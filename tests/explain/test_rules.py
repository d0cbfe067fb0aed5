from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sinkscope._errors import OptionError
from sinkscope.explain import Condition, Rule, fesser_literal, get_rule, load_rule, register_rule, rules

STRICT = Rule(
    "strict",
    "our lab",
    (Condition("routed", ">=", 0.95), Condition("mass", ">", 0.5)),
    (Condition("value_ratio", "<=", 0.1),),
)
STRICT_TEXTS = {
    "name": "strict",
    "source": "our lab",
    "event": "routed >= 0.95 and mass > 0.5",
    "nop": "value_ratio <= 0.1",
}


@pytest.mark.parametrize(
    ("name", "thresholds", "source"),
    [
        (
            "fesser",
            {"event": "routed >= 0.9", "nop": "update_ratio <= 0.2"}
            | {"broadcast": "update_ratio >= 0.5 and stable_rank <= 1.5"},
            "2606.08105",
        ),
        (
            "fesser-literal",
            {"event": "min_mass >= 0.9", "nop": "update_ratio <= 0.2"}
            | {"broadcast": "update_ratio >= 0.5 and stable_rank <= 1.5"},
            "2606.08105, Definition 1 with epsilon = 0.1",
        ),
        (
            "fesser-counts",
            {"event": "routed >= 0.9", "nop": "value_ratio <= 0.2", "broadcast": "value_ratio >= 0.5"},
            "2606.08105",
        ),
        ("gu", {"event": "mass > 0.3"}, "2410.10781"),
        ("dlm", {"event": "column_excess > 3.0"}, "2510.15731"),
    ],
)
def test_known_rules_have_the_thresholds_of_their_papers(name: str, thresholds: dict[str, str], source: str) -> None:
    rule = get_rule(name)
    assert (rule.name, rule.thresholds) == (name, thresholds)
    assert source in rule.source


def test_the_default_comes_first() -> None:
    assert list(rules())[:5] == ["fesser", "fesser-literal", "fesser-counts", "gu", "dlm"]


def test_a_rule_names_the_columns_it_needs() -> None:
    assert get_rule("fesser").columns == ("sink", "routed", "update_ratio", "stable_rank")
    assert set(get_rule("dlm").columns) == {
        "sink",
        "input",
        "layer",
        "mass",
        "virtual_mass",
        "entropy",
        "entropy_share",
    }


def test_a_rule_survives_its_texts() -> None:
    assert STRICT.to_dict() == STRICT_TEXTS
    for rule in (STRICT, *rules().values()):
        assert Rule.from_dict(json.loads(json.dumps(rule.to_dict()))) == rule


def test_rule_files(tmp_path: Path) -> None:
    toml, plain = tmp_path / "strict.toml", tmp_path / "strict.json"
    toml.write_text("".join(f'{name} = "{text}"\n' for name, text in STRICT_TEXTS.items()))
    plain.write_text(json.dumps(STRICT_TEXTS))
    assert load_rule(toml) == load_rule(plain) == get_rule(str(toml)) == STRICT
    for name, text, message in (
        ("missing.toml", None, r"missing.toml cannot be read \(.*No such file"),
        ("broken.toml", "name = ", "broken.toml cannot be read"),
        ("list.json", "[1]", "list.json holds no table"),
        ("number.json", '{"name": "x", "source": "y", "event": 1}', "has the entries event, name, source"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(OptionError, match=message):
            get_rule(str(tmp_path / name))


def test_literal_form_takes_the_papers_epsilons() -> None:
    assert [fesser_literal(epsilon).event[0].threshold for epsilon in (0.5, 0.3, 0.2)] == [0.5, 0.7, 0.8]
    for epsilon in (0.0, 0.51, -1.0, float("nan")):
        with pytest.raises(OptionError, match=f"epsilon is {epsilon}; expected a number above 0 and up to 0.5"):
            fesser_literal(epsilon)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(OptionError) as error:
        get_rule("fessser")
    assert error.value.found == "there is no rule fessser"
    assert error.value.expected.startswith("one of fesser, fesser-literal, fesser-counts, gu, dlm")
    assert error.value.next_step == "correct --rule"


def test_users_add_rules_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinkscope.explain._registry._RULES", rules())
    register_rule(STRICT)
    register_rule(STRICT)
    assert get_rule("strict") is STRICT
    with pytest.raises(OptionError, match=r"another rule is already registered as gu; .*give the rule another name"):
        register_rule(Rule("gu", "me", STRICT.event))
    assert get_rule("gu").source.startswith("Gu et al.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"event": "colour >= 1"}, "names the column colour; expected one of mass, routed, min_mass"),
        ({"event": "role >= 1"}, "names the column role"),
        ({"event": "mass == 1"}, "has the condition 'mass == 1'; expected column, operator and number"),
        ({"event": "mass >= x"}, "has the condition 'mass >= x'"),
        ({"event": "mass >= nan"}, "compares mass with nan"),
        ({"event": "mass >= 1 and "}, "has the condition ''"),
        ({"event": ""}, "expected the texts name, source, event"),
        ({"evnt": "mass >= 1"}, "has the entries event, evnt, name, nop, source"),
    ],
)
def test_a_rule_that_cannot_be_read_says_why(change: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Rule.from_dict(STRICT_TEXTS | change)


def test_a_rule_needs_a_name_a_condition_and_a_real_operator() -> None:
    with pytest.raises(OptionError, match="the rule '' has 2 event conditions"):
        Rule("", "me", STRICT.event)
    with pytest.raises(OptionError, match="the rule 'x' has 0 event conditions"):
        Rule("x", "me", ())
    with pytest.raises(OptionError, match="has the operator !=; expected <=, <, >= or >"):
        Condition("mass", "!=", 0.5)
