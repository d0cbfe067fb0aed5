"""Treatments as words: what they mean, how they are said, and what is wrong with wrong ones."""

from __future__ import annotations

import pytest

from sinkscope._errors import OptionError
from sinkscope._treat_words import Search, Word, described, parse_words, stated
from sinkscope.treat import (
    TREATMENTS,
    AttentionBias,
    ClippedSoftmax,
    Form,
    Gate,
    GlobalPathway,
    HeadNorm,
    KeyBias,
    LearnedSink,
    OffByOne,
    PrefixKV,
    Quantise,
    Registers,
    RemoveHeads,
    RemoveSinks,
    TestTimeRegisters,
    Treatment,
)

MEANT: dict[str, Treatment] = {
    "gate=headwise": Gate(),
    "gate=elementwise,position=value,input_dependent=false,start=0.25,layers=0-2+5": Gate(
        "elementwise", "value", False, 0.25, layers=(0, 1, 2, 5)
    ),
    "learned-sink": LearnedSink(),
    "learned-sink=-3.5": LearnedSink(-3.5),
    "attention-bias": AttentionBias(),
    "key-bias=false": KeyBias(False),
    "off-by-one": OffByOne(),
    "off-by-one,layers=3": OffByOne(layers=(3,)),
    "head-norm=false,eps=1e-05": HeadNorm(False, 1e-5),
    "clipped-softmax=1.25,gamma=-0.5": ClippedSoftmax(1.25, gamma=-0.5),
    "form=softpick": Form("softpick"),
    "form=polynomial,layers=1-2,p=3": Form("polynomial", p=3, layers=(1, 2)),
    "global-pathway=7,gate=hier": GlobalPathway(7, "hier"),
    "registers=3": Registers(3),
    "prefix-kv=5": PrefixKV(5),
    "test-time-registers=none": TestTimeRegisters(),
    "test-time-registers=3.5+4.11,fixed=true": TestTimeRegisters(((3, 5), (4, 11)), fixed=True),
    "remove-sinks=zero,which=0+3,heads=1.0": RemoveSinks("zero", (0, 3), heads=((1, 0),)),
    "remove-sinks=mask,which=sep,tokens=102+104": RemoveSinks("mask", "sep", tokens=(102, 104)),
    "remove-heads=1.2+3.4,random=true,seed=7": RemoveHeads(((1, 2), (3, 4)), random=True, seed=7),
    "quantise=4,granularity=token": Quantise(4, "token"),
}


@pytest.mark.parametrize("word", MEANT)
def test_words_and_treatments_say_the_same(word: str) -> None:
    assert parse_words([word]) == [Word(MEANT[word])]
    assert stated(MEANT[word]) == word


def test_every_treatment_has_a_word_here() -> None:
    assert {treatment.name for treatment in MEANT.values()} == TREATMENTS.keys()


def test_other_ways_to_say_it() -> None:
    words = ["gate", "gate=headwise,layers=all", "gate,kind=headwise", "gate,input-dependent=true", "registers"]
    assert parse_words(words) == [Word(Gate())] * 4 + [Word(Registers())]
    assert parse_words(["registers,layers=5-3", "learned-sink=none"]) == [
        Word(Registers(layers=(3, 4, 5))),
        Word(LearnedSink()),
    ]


def test_what_only_a_model_and_inputs_can_tell() -> None:
    assert parse_words(["test-time-registers"]) == [Word(TestTimeRegisters(), Search())]
    assert parse_words(["test-time-registers=auto:7,threshold=2.5,layer=3,sparsity=0.5,count=2"]) == [
        Word(TestTimeRegisters(count=2), Search(7, 2.5, 3, 0.5))
    ]
    assert parse_words(["prefix-kv=3,fill=true"]) == [Word(PrefixKV(3), fill=True)]


@pytest.mark.parametrize(
    ("word", "found", "expected"),
    [
        ("gates", "there is no treatment 'gates'", "one of gate"),
        ("headwise", "there is no treatment 'headwise'", "one of"),
        ("", "there is no treatment ''", "one of gate, learned-sink"),
        ("gate=round", "gate: kind is 'round'", r"headwise\|elementwise"),
        ("gate,kid=headwise", "gate has no option 'kid'", "one of kind"),
        ("gate,", "'' in gate,", "gate=VALUE,option=value"),
        ("gate=headwise,kind=headwise", "kind twice in gate=headwise,kind=headwise", "one value"),
        ("gate,layers=first", "gate: layers is 'first'", r"0-5\+7 or all"),
        ("gate,layers=0-9999999", "gate: layers is '0-9999999'", r"0-5\+7 or all"),
        ("gate,start=1", "gate: start is 1.0", "a number between 0 and 1"),
        ("off-by-one=3", "off-by-one=3", "off-by-one without a value"),
        ("registers=four", "registers: count is 'four'", "whole number"),
        ("registers=0", "registers: count is 0", "a whole number from 1 on"),
        ("remove-heads", "remove-heads without heads", r"remove-heads=3.5\+4.1"),
        ("remove-heads=3", "remove-heads: heads is '3'", r"3.5\+4.1"),
        ("form", "form without form", "form=NAME"),
        ("form=nope", "nope", "one of"),
        ("form=polynomial,q=3", "polynomial has no option q", "one of"),
        ("test-time-registers=3.5,threshold=2", "test-time-registers has no option 'threshold'", "one of"),
        ("test-time-registers,threshhold=2", "test-time-registers has no option 'threshhold'", "one of threshold"),
        ("prefix-kv,fill=3", "prefix-kv: fill is '3'", r"true\|false"),
    ],
)
def test_wrong_words(word: str, found: str, expected: str) -> None:
    with pytest.raises(OptionError, match=f"{found}.*; expected {expected}"):
        parse_words([word])


def test_the_list_tells_defaults_that_hold() -> None:
    """What it calls the default, put into a word, is what one gets without it."""
    for each in described():
        needed = [name for name, option in each["options"].items() if option["default"] is None]
        if needed:
            assert each["name"] in ("form", "remove-heads") and not each["harmless"]
            continue
        word = parse_words([each["name"]])[0]
        assert each["harmless"] == word.treatment.harmless
        assert each["does"] and each["source"] == word.treatment.source
        for name, option in each["options"].items():
            if option["default"] != "none" or "none" in option["values"]:
                assert parse_words([f"{each['name']},{name}={option['default']}"]) == [word], (each["name"], name)
