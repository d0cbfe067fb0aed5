"""`sinkscope treat --advise`: from verdicts to treatments of the layers they are about."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import sinkscope
from sinkscope._treat import TreatOptions
from sinkscope._treat_advice import _courses, advised
from sinkscope.artifact import write_verdicts
from sinkscope.treat import (
    AttentionBias,
    Gate,
    LearnedSink,
    PrefixKV,
    Registers,
    RemoveHeads,
    RemoveSinks,
    Treatment,
    treatments_of,
)
from tests.cli._ended import Ended, complaint
from tests.cli.conftest import Cli
from tests.models._tiny import picture

Head = tuple[int, int]


def sharp(model: Path, folder: Path) -> Path:
    """A model with queries that pick one key, so that it has sinks."""
    shutil.copytree(model, folder)
    path = folder / "model.safetensors"
    sharpened = ("query.weight", "q_proj.weight")
    weights = {n: 300 * w if n.endswith(sharpened) else w for n, w in load_file(path).items()}
    save_file(weights, path, {"format": "pt"})
    return folder


def verified(model: Path, inputs: Path, out: Path) -> Path:
    """A diagnosis with verdicts on all of 4 heads."""
    diagnosis = sinkscope.diagnose(str(model), inputs, out, limit=9)
    diagnosis.verify("all", inputs=8, donors=1)
    return out


@pytest.fixture(scope="module")
def vision(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("vision")
    (room / "pictures").mkdir()
    for number in range(9):
        picture(41, 43, number).save(room / "pictures" / f"p{number}.png")
    return verified(sharp(vit, room / "model"), room / "pictures", room / "out")


@pytest.fixture(scope="module")
def language(llama: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    room = tmp_path_factory.mktemp("language")
    return verified(sharp(llama, room / "model"), text, room / "out")


def judged(made: Path, out: Path, words: Mapping[Head, str], role: str | None = None) -> Path:
    """A copy of a diagnosis whose sinks are in patches or words unless told, and whose verdicts are these."""
    shutil.copytree(made, out)
    artifact = sinkscope.open(out).artifact
    verdicts, effects = artifact.verdicts, artifact.effects
    assert verdicts is not None and effects is not None
    heads = zip(verdicts["layer"], verdicts["head"], strict=True)
    verdicts["verdict"] = [words.get((int(layer), int(head)), "undecided") for layer, head in heads]
    table = artifact.heads
    table["kind"] = "sink"
    table["role"] = role or ("word" if artifact.manifest["model"]["modality"] == "text" else "patch")
    write_verdicts(out, table, verdicts, effects)
    return out


def put_in(ended: Ended, out: Path) -> tuple[Treatment, ...]:
    assert ended.code == 0, ended.err
    return treatments_of(sinkscope.load(f"treated:{out}"))


@pytest.mark.parametrize(
    ("words", "flags", "expected"),
    [
        ({(1, 0): "nop"}, [], {Gate(layers=(1,))}),
        ({(0, 0): "nop", (1, 0): "nop", (1, 1): "bias"}, [], {Gate(layers=(0, 1)), AttentionBias(layers=(1,))}),
        ({(0, 0): "broadcast", (0, 1): "broadcast"}, [], {Registers(layers=(0,))}),
        ({(0, 0): "broadcast", (1, 1): "nop"}, [], {Registers(layers=(0,)), Gate(layers=(1,))}),
        ({(0, 1): "nop", (1, 1): "inert"}, [], {Gate(layers=(0,))}),
        ({(0, 1): "nop", (1, 1): "inert"}, ["--prune"], {Gate(layers=(0,)), RemoveHeads(((1, 1),))}),
        ({(1, 1): "inert"}, [], {RemoveHeads(((1, 1),))}),
    ],
)
def test_each_verdict_gets_its_treatment_where_it_is(
    words: dict[Head, str], flags: list[str], expected: set[Treatment], vision: Path, cli: Cli, tmp_path: Path
) -> None:
    made = judged(vision, tmp_path / "diagnosis", words)
    assert set(put_in(cli("treat", "--advise", made, *flags, "--out", tmp_path / "out"), tmp_path / "out")) == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({(0, 0): "broadcast"}, {PrefixKV(layers=(0,))}),
        # a prefix takes the place of the attention bias, and can hold a constant, too
        ({(0, 0): "broadcast", (1, 0): "bias"}, {PrefixKV(layers=(0,)), AttentionBias(layers=(1,))}),
        ({(0, 0): "broadcast", (1, 0): "broadcast", (1, 1): "bias"}, {PrefixKV(layers=(0, 1))}),
        ({(0, 1): "nop"}, {Gate(layers=(0,))}),
    ],
)  # fmt: skip
def test_decoders_get_prefixes_and_no_alternatives(
    words: dict[Head, str], expected: set[Treatment], language: Path, cli: Cli, tmp_path: Path
) -> None:
    made = judged(language, tmp_path / "diagnosis", words)
    ended = cli("treat", "--advise", made, "--out", tmp_path / "out")
    assert set(put_in(ended, tmp_path / "out")) == expected
    if "nop" in words.values():
        assert "Or, instead of gates, a learned sink" in ended.out
        assert "left out: an alternative to the gates" in ended.out


def test_registers_start_like_the_class_token_where_that_is_the_sink(vision: Path, cli: Cli, tmp_path: Path) -> None:
    made = judged(vision, tmp_path / "diagnosis", {(1, 0): "broadcast", (0, 1): "nop"}, role="cls")
    ended = cli("treat", "--advise", made, "--out", tmp_path / "out")
    assert set(put_in(ended, tmp_path / "out")) == {Registers(like=0, layers=(1,)), Gate(layers=(0,))}
    assert "registers=4,like=0,layers=1" in ended.out


@pytest.mark.parametrize("kind", ["vision", "language"])
def test_sinks_of_treated_heads_are_masked(kind: str, request: pytest.FixtureRequest, cli: Cli, tmp_path: Path) -> None:
    words = {(0, 0): "nop", (0, 1): "inert", (1, 0): "bias"}
    made, out = judged(request.getfixturevalue(kind), tmp_path / "diagnosis", words), tmp_path / "out"
    ended = cli(
        "treat", "--advise", made, "--mask-sinks", "--tune", "--objective", "distill", "--steps", 2, "--out", out
    )
    which = {"vision": "mass", "language": "first"}[kind]
    masked = RemoveSinks("mask", which, heads=((0, 0), (1, 0)))  # type: ignore[arg-type]  # a Literal
    assert set(put_in(ended, out)) == {masked, Gate(layers=(0,)), AttentionBias(layers=(1,))}
    told = {"vision": "which=mass,", "language": ""}[kind]  # the first token is the default
    assert f"remove-sinks=mask,{told}heads=0.0+1.0: nobody sees these heads' sinks any more" in ended.out
    assert "nothing to teach" not in ended.out
    alone = cli(
        "treat", "--advise", made, "--tune", "--objective", "distill", "--steps", 1, "--out", tmp_path / "alone"
    )
    assert "nothing to teach it: take sinks away as well" in alone.out


def test_it_says_what_and_why_and_on_which_evidence(vision: Path, cli: Cli, tmp_path: Path) -> None:
    made = judged(vision, tmp_path / "diagnosis", {(0, 0): "nop", (1, 1): "inert"})
    out = tmp_path / "out"
    ended = cli("treat", "--advise", made, "--out", out)
    assert ended.code == 0, ended.err
    prescription, _, done = ended.out.partition("\nDone about it:\n")
    assert prescription.strip() == str(sinkscope.open(made).prescription())
    lines = done.splitlines()
    assert lines[0] == "1. gate=headwise,layers=0: every head of these layers gets a gate, open at first"
    assert lines[1] == "2. left out: changes the outputs; --prune does it"
    inputs = sinkscope.open(made).manifest["inputs"]["location"]
    assert f"on the first 8 inputs of {inputs}" in done  # its own, as a probe
    assert lines[-2].startswith(f"next: sinkscope diagnose treated:{out} --images {inputs} --limit 9 --out ")
    assert lines[-1] == f"then: sinkscope compare {made} {out / 'diagnosis'}"

    facts = json.loads(cli("treat", "--advise", made, "--out", tmp_path / "again", "--json").out)
    assert [(each["treatment"], each["heads"], each["done"]) for each in facts["advice"]] == [
        ("gate", ["0.0"], ["gate=headwise,layers=0"]),
        ("prune", ["1.1"], []),
    ]
    assert facts["advice"][0]["evidence"] and facts["treatments"] == ["gate=headwise,layers=0"]


def test_it_tunes_on_the_inputs_of_the_diagnosis(language: Path, text: Path, cli: Cli, tmp_path: Path) -> None:
    made, out = judged(language, tmp_path / "diagnosis", {(0, 0): "nop"}), tmp_path / "out"
    ended = cli("treat", "--advise", made, "--tune", "--objective", "lm", "--steps", 2, "--out", out)
    assert ended.code == 0, ended.err
    assert "tuned for 2 steps (lm) on 8 inputs: loss on 1 held out" in ended.out
    (tuning,) = json.loads((out / "treated.json").read_text())["tuning"]
    assert tuning["inputs"] == sinkscope.open(made).manifest["inputs"]


def test_nothing_to_treat_is_said_and_nothing_written(vision: Path, cli: Cli, tmp_path: Path) -> None:
    made, out = judged(vision, tmp_path / "diagnosis", {}), tmp_path / "out"
    ended = cli("treat", "--advise", made, "--out", out)
    assert (ended.code, out.exists()) == (0, False)
    assert ended.out.startswith(f"{made}: nothing to treat, nothing is written")
    assert "None of 4 sink heads has a verdict that calls for a treatment" in ended.out
    facts = json.loads(cli("treat", "--advise", made, "--out", out, "--json").out)
    assert facts["out"] is None and [each["done"] for each in facts["advice"]] == [[]]


def test_what_was_done_before_is_not_done_again(vision: Path, cli: Cli, tmp_path: Path) -> None:
    """A diagnosis of a gated model whose verdicts still call for gates."""
    before = sinkscope.open(vision).manifest
    gated = tmp_path / "gated"
    assert cli("treat", before["model"]["reference"], "--with", "gate,layers=0", "--out", gated).code == 0
    again = verified(gated, Path(before["inputs"]["location"]), tmp_path / "made")
    one = judged(again, tmp_path / "one", {(0, 0): "nop", (1, 0): "nop"})
    assert set(put_in(cli("treat", "--advise", one, "--out", tmp_path / "a"), tmp_path / "a")) == {
        Gate(layers=(0,)),
        Gate(layers=(1,)),
    }
    other = judged(again, tmp_path / "other", {(0, 0): "nop"})
    ended = cli("treat", "--advise", other, "--out", tmp_path / "b")
    assert (ended.code, (tmp_path / "b").exists()) == (0, False)
    assert "something in that place already" in ended.out


def test_what_cannot_be_advised(vision: Path, vit: Path, pictures: Path, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = complaint(cli("treat", "--advise", tmp_path / "nope", "--out", out), out)
    assert f"there is no folder {tmp_path / 'nope'}" in line
    unverified = sinkscope.diagnose(str(vit), pictures, tmp_path / "unverified").path
    line = complaint(cli("treat", "--advise", unverified, "--out", out), out)
    assert "has no verdicts" in line and line.endswith(f"next: sinkscope verify {unverified}")
    assert "REF beside --advise" in complaint(cli("treat", vit, "--advise", vision, "--out", out), out)
    assert "--with beside --advise" in complaint(cli("treat", "--advise", vision, "--with", "gate", "--out", out), out)
    assert "--limit without inputs: those of the diagnosis" in complaint(
        cli("treat", "--advise", vision, "--limit", 3, "--out", out), out
    )
    made = judged(vision, tmp_path / "diagnosis", {(0, 0): "nop"})
    line = complaint(cli("treat", "--advise", made, "--dtype", "bfloat16", "--out", out), out)
    assert "--dtype bfloat16 for a diagnosis in the own type of the model" in line


def test_inputs_and_models_that_are_gone(vit: Path, cli: Cli, pictures: Path, tmp_path: Path) -> None:
    out, there = tmp_path / "out", tmp_path / "pictures"
    shutil.copytree(pictures, there)
    for number in range(7, 9):
        picture(41, 43, number).save(there / f"p{number}.png")
    model = sharp(vit, tmp_path / "model")
    made = judged(verified(model, there, tmp_path / "made"), tmp_path / "diagnosis", {(0, 0): "nop"})
    there.rename(tmp_path / "moved")
    line = complaint(cli("treat", "--advise", made, "--tune", "--out", out), out)
    assert str(there) in line and "give the inputs to tune on" in line
    ended = cli("treat", "--advise", made, "--out", tmp_path / "untuned")
    assert ended.code == 0 and "on 4 pictures of grey noise" in ended.out
    ended = cli("treat", "--advise", made, "--images", tmp_path / "moved", "--out", tmp_path / "given")
    assert ended.code == 0 and f"on the first 8 inputs of {tmp_path / 'moved'}" in ended.out

    path = model / "model.safetensors"
    save_file({name: value * 2 for name, value in load_file(path).items()}, path, {"format": "pt"})
    for given in ([], ["--images", tmp_path / "moved"]):
        line = complaint(cli("treat", "--advise", made, *given, "--out", out), out)
        assert f"are not those of {made}" in line
    model.rename(tmp_path / "gone")
    line = complaint(cli("treat", "--advise", made, "--out", out), out)
    assert f"what it was when {made} was made" in line and "in the folder that diagnose ran in" in line


def test_a_learned_sink_where_nothing_else_is_advised(language: Path, tmp_path: Path) -> None:
    """No prescription says so today: it comes with gates. If one does, it is no alternative any more."""
    made = judged(language, tmp_path / "diagnosis", {(1, 0): "nop"})
    plan = advised(made, TreatOptions(), prune=False, mask_sinks=False, tune=False)
    assert plan.subject is not None
    alone = replace(plan.prescription, advice=plan.prescription.advice[1:])
    (course,) = _courses(sinkscope.open(made), alone, plan.subject, prune=False)
    assert course.treatments == (LearnedSink(layers=(1,)),)
