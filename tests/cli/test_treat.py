"""`sinkscope treat` as its users meet it: what it writes and prints, and what it refuses."""

from __future__ import annotations

import inspect
import json
import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import sinkscope
from sinkscope._treat_command import treat as command
from sinkscope.train.tuning import TuneOptions
from sinkscope.treat import Gate, LearnedSink, OffByOne, PrefixKV, Registers, TestTimeRegisters, treatments_of
from tests.cli._ended import Ended, complaint
from tests.cli.conftest import Cli
from tests.models._tiny import save, save_processor


def lines(ended: Ended) -> dict[str, str]:
    """What was printed, by the words in front of the colons."""
    assert ended.code == 0, ended.err
    return dict(line.split(": ", 1) for line in ended.out.splitlines())


def output(reference: str | Path, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = sinkscope.load(str(reference)).module(x)[0]
    return found


PIXELS = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
IDS = torch.randint(3, 14, (2, 11), generator=torch.Generator().manual_seed(0))


# -- what is written and printed -------------------------------------------------------------------


def test_a_treated_model_is_written_and_is_a_model(cli: Cli, vit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = lines(cli("treat", vit, "--with", "gate=elementwise,layers=1", "registers=3", "--out", out))
    assert said["treated"] == str(vit)
    assert said["with"] == "gate=elementwise,layers=1 registers=3"
    # a gate in one layer: weights of 24 x 24 and biases of 24; three tokens of 24, and a logit for each of 2 x 2 heads
    base = sinkscope.load(str(vit)).parameters
    share = 100 * (24 * 24 + 24 + 3 * 24 + 4) / base
    assert said["added"] == f"676 parameters, {share:.2g}% of the model's own {base:,}"
    assert said["outputs"].startswith("unchanged but for rounding, by ")
    assert said["outputs"].endswith("on 4 pictures of grey noise")
    assert said["written"] == str(out)
    assert said["next"] == f"sinkscope diagnose treated:{out} --images FOLDER --out {out / 'diagnosis'}"
    assert sorted(path.name for path in out.iterdir()) == ["treated.json", "treatment.json", "treatment.safetensors"]

    model = sinkscope.load(f"treated:{out}")
    assert treatments_of(model) == (Gate("elementwise", layers=(1,)), Registers(3))
    assert model.reference == f"treated:{out}" and model.modality == "vision"
    assert sum("treated with" in note for note in model.notes) == 2
    torch.testing.assert_close(output(f"treated:{out}", PIXELS), output(vit, PIXELS), rtol=0, atol=1e-5)


def test_words_may_stand_behind_one_flag_or_behind_several(cli: Cli, vit: Path, tmp_path: Path) -> None:
    for number, words in enumerate(
        (
            [vit, "--with", "gate", "head-norm", "learned-sink"],
            [vit, "--with", "gate", "--with", "head-norm", "learned-sink"],
            [vit, "--with=gate", "head-norm", "learned-sink"],
            ["--with", "gate", "head-norm", "learned-sink", "--seed", 0, vit],
            ["--with", "gate", "head-norm", "learned-sink", "--", vit],
        )
    ):
        # options first, since those behind -- are none
        facts = json.loads(cli("treat", "--json", "--out", tmp_path / str(number), *words).out)
        assert facts["treatments"] == ["gate=headwise", "head-norm", "learned-sink"]


def test_json_is_one_object(cli: Cli, llama: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    facts = json.loads(cli("treat", llama, "--with", "off-by-one", "--text", text, "--out", out, "--json").out)
    assert facts["out"] == str(out) and facts["model"] == f"treated:{out}" and facts["base"] == str(llama)
    assert facts["treatments"] == ["off-by-one"]
    assert facts["added"] == {"parameters": 0, "share": 0.0}
    assert facts["probe"]["inputs"] == f"the first 8 inputs of {text}"
    plain, treated = (sinkscope.load(str(name)) for name in (llama, f"treated:{out}"))
    batch = next(iter(sinkscope.models.make_inputs(plain, text).batches()))
    with torch.no_grad():
        before, after = (model.module(**batch.kwargs).logits for model in (plain, treated))
    assert facts["probe"]["change"] == pytest.approx(float((after - before).abs().max() / before.abs().max()), rel=1e-4)
    assert facts["tuning"] is None and "advice" not in facts
    assert facts["next"] == f"sinkscope diagnose treated:{out} --text {text} --out {out / 'diagnosis'}"


def test_next_names_the_inputs_as_they_were_given(cli: Cli, vit: Path, pictures: Path, tmp_path: Path) -> None:
    given = ["--images", pictures, "--limit", 3, "--size", 42]
    said = lines(cli("treat", vit, "--with", "gate", *given, "--out", tmp_path / "the model"))
    words = f"--images {pictures} --limit 3 --size 42"
    assert said["next"].startswith(f"sinkscope diagnose 'treated:{tmp_path}/the model' {words} --out ")
    assert said["outputs"].endswith(f"on the first 3 inputs of {pictures}")


def test_a_made_up_text_fits_the_model(cli: Cli, bert: Path, llama: Path, tmp_path: Path) -> None:
    """They take 29 and 53 tokens."""
    for model, tokens in ((bert, 29), (llama, 53)):
        said = lines(cli("treat", model, "--with", "gate", "--out", tmp_path / model.name))
        assert said["outputs"].endswith(f"on a made-up text of {tokens} tokens")
        assert "--text FILE" in said["next"]


def test_all_treatments_are_listed(cli: Cli) -> None:
    ended = cli("treat", "--list")
    assert ended.code == 0
    blocks = {block.split()[0]: block for block in ended.out.split("\n\n")[1:]}
    assert blocks.keys() == sinkscope.treat.TREATMENTS.keys()
    assert blocks["gate"].startswith("gate (outputs unchanged until tuned)")
    assert "kind=headwise|elementwise [headwise]" in blocks["gate"] and "2505.06708" in blocks["gate"]
    assert blocks["off-by-one"].startswith("off-by-one (changes the outputs from the start)")
    assert [each["name"] for each in json.loads(cli("treat", "--list", "--json").out)] == list(blocks)


# -- starts that depend on inputs ------------------------------------------------------------------


def test_register_neurons_are_found_on_the_pictures(cli: Cli, vit: Path, pictures: Path, tmp_path: Path) -> None:
    word = "test-time-registers=auto:3,threshold=0.3"
    said = lines(cli("treat", vit, "--with", word, "--images", pictures, "--out", tmp_path / "out"))
    model = sinkscope.load(str(vit))
    batches: list[Any] = list(sinkscope.models.make_inputs(model, pictures).batches())
    neurons = sinkscope.treat.find_register_neurons(model, batches, threshold=0.3).neurons(3)
    assert treatments_of(sinkscope.load(f"treated:{tmp_path / 'out'}")) == (TestTimeRegisters(neurons),)
    assert said["with"] == "test-time-registers=" + "+".join(f"{block}.{neuron}" for block, neuron in neurons)
    assert "patches are outliers" in said["note"] and said["outputs"].startswith("changed, by ")
    assert any("patches are outliers" in note for note in sinkscope.load(f"treated:{tmp_path / 'out'}").notes)


def test_a_prefix_can_have_the_key_values_of_the_text(cli: Cli, llama: Path, text: Path, tmp_path: Path) -> None:
    """With them in front, what follows is as in the whole text."""
    said = lines(
        cli("treat", llama, "--with", "prefix-kv=3,fill=true", "--text", text, "--length", 13, "--out", tmp_path / "a")
    )
    assert "first 3 tokens of the text" in said["note"] and said["outputs"].startswith("changed")
    treated = sinkscope.load(f"treated:{tmp_path / 'a'}")
    assert treatments_of(treated) == (PrefixKV(3),) and treated.notes[-1] == said["note"]
    plain = sinkscope.load(str(llama))
    ids = next(iter(sinkscope.models.make_inputs(plain, text, length=13).batches())).kwargs["input_ids"][:1]
    with torch.no_grad():
        whole = plain.module(ids).logits[:, 3:]
        rest = treated.module(ids[:, 3:], position_ids=torch.arange(3, 13)[None]).logits
    torch.testing.assert_close(rest, whole, rtol=0, atol=1e-5)


def test_registers_of_the_model_stay(cli: Cli, tmp_path: Path) -> None:
    save("dinov2_registers", tmp_path / "model")
    save_processor(tmp_path / "model")
    said = lines(cli("treat", tmp_path / "model", "--with", "registers=2", "--out", tmp_path / "out"))
    assert said["note"] == "registers: the model has 3 of its own, which stay; these come on top"


# -- tuning ----------------------------------------------------------------------------------------


def test_tuning(cli: Cli, llama: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tuning = ["--tune", "--objective", "lm", "--steps", 7, "--lr", 0.05, "--batch-size", 5]
    ended = cli("treat", llama, "--with", "gate", "--text", text, "--length", 17, *tuning, "--out", out)
    said = lines(ended)
    assert ended.err.splitlines()[-1].startswith("step 7 of 7, loss ")
    assert said["before tuning"].startswith("unchanged")
    table = pd.read_parquet(out / "tuning.parquet")
    first, last = table["held_out_loss"].iloc[0], table["held_out_loss"].iloc[-1]
    told = f"{first:.3g} before, {last:.3g} after"
    assert last < first and said["tuned for 7 steps (lm) on 28 inputs"] == f"loss on 3 held out {told}"
    facts = json.loads((out / "treated.json").read_text())
    (tuned,) = facts["tuning"]
    options = tuned["result"]["options"]
    assert (options["steps"], options["lr"], options["batch_size"]) == (7, 0.05, 5)
    assert tuned["inputs"]["length"] == 17 and tuned["result"]["loss_after"] == last
    assert facts["command"].startswith("sinkscope treat") and facts["packages"]["torch"]

    model = sinkscope.load(f"treated:{out}")
    assert model.notes[-1].startswith("tuned for 7 steps (lm) on 28 inputs")
    saved = load_file(out / "treatment.safetensors")
    assert saved.keys() == sinkscope.treat.added(model).keys() and any(
        value.abs().max() > 0 for value in saved.values()
    )
    assert not torch.equal(output(f"treated:{out}", IDS), output(llama, IDS))


def test_the_help_tells_the_defaults_of_tuning() -> None:
    hints = {name: option.annotation for name, option in inspect.signature(command).parameters.items()}
    for name in ("steps", "lr"):
        assert f"; {getattr(TuneOptions, name)} by default" in str(hints[name])
    assert inspect.signature(command).parameters["batch_size"].default == TuneOptions.batch_size


def test_a_stopped_tuning_goes_on(
    cli: Cli, llama: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sinkscope.train.tuning._loop import Loop

    out, asked = tmp_path / "out", ["--tune", "--objective", "lm", "--steps", 5]
    measured, penalty = [], Loop._penalty

    def stop(self: Loop, terms: Any) -> torch.Tensor:
        measured.append(1)
        if len(measured) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return penalty(self, terms)

    monkeypatch.setattr(Loop, "_penalty", stop)
    ended = cli("treat", llama, "--with", "gate", "--text", text, *asked, "--out", out)
    assert ended.code == 2
    line = ended.err.splitlines()[-1]
    assert line.startswith(f"sinkscope: stopped, steps done and kept in {out}: 3; next: run the same command again")
    assert not (out / "treated.json").exists()
    line = complaint(cli("diagnose", f"treated:{out}", "--text", text, "--out", tmp_path / "d"), tmp_path / "d")
    assert line.endswith("next: go on with its tuning: the command that began it, with the same --out")
    line = complaint(cli("treat", llama, "--with", "gate", "--out", out))
    assert f"{out} holds a tuning that is not finished" in line and "give --tune to go on" in line
    line = complaint(cli("treat", llama, "--with", "gate", "--text", text, *asked, "--lr", 0.5, "--out", out))
    assert f"lr 0.5 now, {TuneOptions.lr} then" in line

    again = cli("treat", llama, "--with", "gate", "--text", text, *asked, "--out", out)
    assert again.code == 0 and len(measured) == 4 + 2
    whole = cli("treat", llama, "--with", "gate", "--text", text, *asked, "--out", tmp_path / "whole")
    assert whole.code == 0 and len(measured) == 4 + 2 + 5
    one, other = (load_file(folder / "treatment.safetensors") for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_tuning_that_diverges_has_its_own_exit_code(cli: Cli, vit: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    tuning = ["--tune", "--steps", 9, "--lr", 1e6]
    ended = cli("treat", vit, "--with", "attention-bias=false", "--images", pictures, *tuning, "--out", out)
    assert ended.code == 1
    assert "diverged at step" in ended.out and "the values of step 0 are kept" in ended.out
    assert max(value.abs().max() for value in load_file(out / "treatment.safetensors").values()) < 1
    assert json.loads((out / "treated.json").read_text())["tuning"][0]["result"]["diverged"] is True


def test_what_was_put_in_can_be_tuned_later(cli: Cli, llama: Path, text: Path, tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    assert cli("treat", llama, "--with", "gate", "--out", first).code == 0
    tuning = ["--tune", "--objective", "lm", "--steps", 2, "--text", text]
    said = lines(cli("treat", f"treated:{first}", *tuning, "--out", second))
    assert said["with"] == "gate=headwise" and "outputs" not in said and "before tuning" not in said
    assert cli("treat", second, "--with", "learned-sink", *tuning, "--out", third).code == 0
    model = sinkscope.load(str(third))
    assert treatments_of(model) == (Gate(), LearnedSink())
    assert sum(note.startswith("tuned for 2 steps") for note in model.notes) == 2
    facts = json.loads((third / "treated.json").read_text())
    assert facts["base"]["given"] == str(llama) and len(facts["tuning"]) == 2


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ["no model", "REF in front of --with", "sinkscope treat --list"]),
        (["--with", "gate", "VIT"], ["no model", "REF in front of --with"]),
        (["VIT"], ["nothing to treat with", "sinkscope treat --list"]),
        (["VIT", "--with"], ["--with and no treatment behind it", "sinkscope treat --list"]),
        (["VIT", "gate"], ["unexpected extra argument(s) (gate)", "sinkscope treat --help"]),
        (["VIT", "--with", "gates"], ["no treatment 'gates'", "expected one of gate;"]),
        (["VIT", "--with", "gate", "--tune"], ["--tune without inputs", "--images, --text and --dataset"]),
        (["VIT", "--with", "gate", "--steps", "3"], ["--steps without --tune"]),
        (["VIT", "--with", "gate", "--skip-bad"], ["--skip-bad without inputs"]),
        (["VIT", "--with", "gate", "--limit", "3"], ["--limit without inputs"]),
        (["VIT", "--with", "gate", "--prune"], ["--prune without --advise"]),
        (["VIT", "--with", "gate", "--mask-sinks"], ["--mask-sinks without --advise"]),
        (["VIT", "--with", "gate", "--images", "nope"], ["--images nope, which does not exist"]),
        (["VIT", "--with", "gate", "--images", "PICTURES", "--text", "TEXT"], ["--images and --text"]),
        (["VIT", "--with", "gate", "--text", "TEXT"], ["text inputs for", "next: --images FOLDER"]),
        (["VIT", "--with", "gate,layers=5"], ["gate for layers 5", "some of 0 to 1"]),
        (["VIT", "--with", "gate", "gate"], ["gate and gate at", "one treatment that is its gate"]),
        (["VIT", "--with", "off-by-one", "--tune", "--images", "PICTURES"], ["off-by-one: nothing to tune"]),
        (["VIT", "--with", "gate", "--tune", "--images", "PICTURES", "--steps", "0"], ["steps is 0"]),
        (["VIT", "--with", "gate", "--tune", "--images", "PICTURES", "--objective", "x"], ["objective is 'x'"]),
        (["VIT", "--with", "test-time-registers"], ["test-time-registers without pictures", "--images FOLDER"]),
        (["VIT", "--with", "test-time-registers", "--images", "PICTURES"], ["no outlier tokens", "largest"]),
        (["LLAMA", "--with", "prefix-kv,fill=true"], ["fill without a text", "--text FILE"]),
        (["LLAMA", "--with", "registers"], ["of kind decoder", "prefix-kv"]),
        (["LLAMA", "--with", "gate", "--text", "TEXT", "--size", "7"], ["size for", "which takes text"]),
        (["toy:runs", "--with", "gate"], ["model reference 'toy:runs'"]),
        (["treated:nope", "--with", "gate"], ["model reference 'treated:nope'", "treated.json", "check the path"]),
        (["timm:resnet10t?pretrained=false", "--with", "gate"], ["of no family that can be treated", "Dinov2"]),
    ],
)  # fmt: skip
def test_mistakes(
    arguments: list[str], says: list[str], cli: Cli, vit: Path, llama: Path, pictures: Path, text: Path, tmp_path: Path
) -> None:
    named = {"VIT": vit, "LLAMA": llama, "PICTURES": pictures, "TEXT": text}
    given = [named.get(argument, argument) for argument in arguments]
    line = complaint(cli("treat", *given, "--out", tmp_path / "out"), tmp_path / "out")
    for words in says:
        assert words in line, line


def test_a_place_that_is_taken(cli: Cli, vit: Path, pictures: Path, tmp_path: Path) -> None:
    assert "no --out" in complaint(cli("treat", vit, "--with", "gate"))
    assert cli("treat", vit, "--with", "gate", "--out", tmp_path / "out").code == 0
    before = (tmp_path / "out" / "treated.json").read_bytes()
    line = complaint(cli("treat", vit, "--with", "head-norm", "--out", tmp_path / "out"))
    assert "holds a treated model already" in line and f"sinkscope treat treated:{tmp_path / 'out'}" in line
    assert (tmp_path / "out" / "treated.json").read_bytes() == before
    line = complaint(cli("treat", vit, "--with", "gate", "--out", pictures))
    assert f"{pictures} holds p0.png" in line
    line = complaint(cli("treat", vit, "--with", "gate", "--out", pictures / "p0.png"))
    assert "is a file" in line


def test_a_broken_promise(cli: Cli, vit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A treatment that says it changes nothing, and does."""
    monkeypatch.setattr(OffByOne, "harmless", True)
    line = complaint(cli("treat", vit, "--with", "off-by-one", "--out", tmp_path / "out"), tmp_path / "out")
    assert "off-by-one: outputs on the probe change by" in line and "which these treatments promise" in line


def test_a_model_that_has_gates_already(cli: Cli, vit: Path, tmp_path: Path) -> None:
    assert cli("treat", vit, "--with", "gate", "--out", tmp_path / "one").code == 0
    line = complaint(cli("treat", tmp_path / "one", "--with", "gate", "--out", tmp_path / "two"), tmp_path / "two")
    assert "gate and gate at encoder.layer.0.attention" in line


def test_a_toy_is_no_model_to_treat(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    line = complaint(cli("treat", f"toy:{tmp_path / 'run'}", "--with", "gate", "--out", tmp_path / "a"), tmp_path / "a")
    assert "a pretrained model" in line and "sinkscope toy --help" in line
