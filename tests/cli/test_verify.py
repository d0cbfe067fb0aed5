"""`sinkscope verify` as its users meet it: what it prints, what it refuses, what it keeps."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sinkscope
from sinkscope.artifact import write_edits
from tests._tables import same
from tests.cli._ended import complaint
from tests.cli.conftest import Cli
from tests.models._tiny import picture


@pytest.fixture(scope="module")
def sharp(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vision model with queries that pick one key, so that it has sinks."""
    folder = Path(shutil.copytree(vit, tmp_path_factory.mktemp("models") / "sharp"))
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: 300 * w if name.endswith("query.weight") else w for name, w in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    return folder


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 9 pictures."""
    folder = tmp_path_factory.mktemp("nine")
    for number in range(9):
        picture(41, 43, number).save(folder / f"p{number}.png")
    return folder


@pytest.fixture(scope="module")
def made(sharp: Path, nine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sinkscope.diagnose(str(sharp), nine, tmp_path_factory.mktemp("made") / "out", batch_size=4).path


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


ASKED = ("--heads", "0.0,1.1", "--inputs", 9, "--donors", 1)


def files(out: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_it_prints_the_verdicts_and_where_the_report_is(cli: Cli, out: Path) -> None:
    ended = cli("verify", out, *ASKED)
    assert ended.code == 0, ended.err
    first, *_, one, other, last = ended.out.splitlines()
    assert first.startswith("captured 2 of 2 attention modules")
    verdicts = sinkscope.open(out).verdicts.set_index(["layer", "head"])
    for line, head in ((one, (0, 0)), (other, (1, 1))):
        name, rest = line.split(maxsplit=1)
        assert name == f"{head[0]}.{head[1]}"
        assert rest.startswith(str(verdicts.loc[head, "verdict"])) and rest.endswith(str(verdicts.loc[head, "reason"]))
    assert last == f"report: {out / 'report.html'}"
    shown = cli("show", out).out
    assert "confidence" in shown
    assert "Verdicts say what the sinks do on these inputs" in shown  # how the prescription ends
    assert [line.partition(" ")[0] for line in ended.err.splitlines()] == ["part"]
    assert ended.err.splitlines()[-1].startswith("part 6 of 6")


def test_json_is_one_object(cli: Cli, out: Path) -> None:
    facts = json.loads(cli("verify", out, *ASKED, "--json").out)
    assert [(head["layer"], head["head"]) for head in facts["verdicts"]] == [(0, 0), (1, 1)]
    assert set(facts["verdicts"][0]) == {
        "layer", "head", "verdict", "confidence", "n_verified", "n_needed", "reason",
    }  # fmt: skip
    assert facts["report"] == str(out / "report.html")
    assert facts["summary"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--heads", "2.0"], "there is no layer 2; expected a layer among 0 to 1; next: correct --heads"),
        (["--heads", "1.2"], "there is no head 1.2; expected a head from 1.0 to 1.1"),
        (["--heads", "all,1.1"], "--heads is 'all,1.1'; expected auto, all, or heads as layer.head with commas"),
        (["--inputs", "7"], "--inputs is 7; expected a whole number from 8 on, the fewest that make an interval"),
        (["--donors", "0"], "--donors is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--device", "blah"], "device 'blah'"),
        (["--freeze"], "No such option"),
    ],
)
def test_options_that_cannot_be(options: list[str], message: str, cli: Cli, out: Path) -> None:
    before = files(out)
    assert message in complaint(cli("verify", out, *options))
    assert files(out) == before


def test_a_folder_that_is_no_finished_diagnosis(cli: Cli, out: Path, nine: Path) -> None:
    assert f"{nine} holds no manifest.json" in complaint(cli("verify", nine))
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps(manifest | {"finished": None}))
    assert f"{out} is an unfinished run" in complaint(cli("verify", out))


def test_a_model_that_has_changed(cli: Cli, sharp: Path, nine: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(sharp, tmp_path / "model"))
    out = sinkscope.diagnose(str(model), nine, tmp_path / "out").path
    weights = load_file(model / "model.safetensors")
    weights["layernorm.bias"] += 1
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    before = files(out)
    line = complaint(cli("verify", out))
    assert f"the weights of {model} are not those of {out} (sha256 " in line
    assert sinkscope.open(out).manifest["model"]["weights_sha256"] + " then" in line
    assert line.endswith("next: diagnose the model as it is now, into another folder")
    shutil.rmtree(model)
    assert "next: verify from the folder that diagnose ran in" in complaint(cli("verify", out))
    assert files(out) == before


def test_pictures_that_have_changed(cli: Cli, sharp: Path, nine: Path, tmp_path: Path) -> None:
    pictures = Path(shutil.copytree(nine, tmp_path / "pictures"))
    out = sinkscope.diagnose(str(sharp), pictures, tmp_path / "out").path
    picture(41, 43, 77).save(pictures / "p3.png")
    before = files(out)
    line = complaint(cli("verify", out))
    assert f"the inputs are not those of {out} (sha256 " in line
    assert sinkscope.open(out).manifest["inputs"]["sha256"] + " then" in line
    assert files(out) == before


def test_a_diagnosis_that_only_python_can_verify(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    module = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(6, 2, 7, batch_first=True), 1)
    sinkscope.diagnose(module.eval(), torch.randn(9, 17, 6, generator=torch.Generator().manual_seed(0)), out)
    line = complaint(cli("verify", out, "--heads", "0.0"))
    assert "was made from a torch module (TransformerEncoder), which no reference can load" in line
    assert f"sinkscope.open('{out}').verify(model=MODULE, data=INPUTS)" in line


def test_several_processes_are_refused(cli: Cli, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("sinkscope._ending.fails_first", lambda: True)
    assert "verify in 2 processes; expected one process" in complaint(cli("verify", out))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_done_is_kept_and_the_line_says_how_to_go_on(
    number: int, cli: Cli, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(shutil.copytree(out, tmp_path / "whole"))
    write, parts = write_edits, 0

    def stopped(*arguments: Any, **named: Any) -> None:
        nonlocal parts
        if parts == stop:
            os.kill(os.getpid(), number)
        parts += 1
        write(*arguments, **named)

    monkeypatch.setattr("sinkscope.explain.edits._run.write_edits", stopped)
    stop, before = 0, files(out)
    line = complaint(cli("verify", out, *ASKED))
    assert line == "stopped, no part was done, nothing is kept; next: run the same command again"
    assert files(out) == before
    stop, parts = 2, 0
    line = complaint(cli("verify", out, *ASKED))
    kept = (
        f"stopped, parts done and kept in {out / 'edits'}: 2; next: run the same command again, it goes on from there"
    )
    assert line == kept
    monkeypatch.undo()
    ended = cli("verify", out, *ASKED)
    assert ended.code == 0
    assert ended.err.splitlines()[-1].startswith("part 6 of 6")
    assert cli("verify", whole, *ASKED).code == 0
    same(sinkscope.open(out).verdicts, sinkscope.open(whole).verdicts, 1e-6)
    same(sinkscope.open(out).effects, sinkscope.open(whole).effects, 1e-6)


def test_other_options_name_the_difference_and_the_old_command(cli: Cli, out: Path) -> None:
    assert cli("verify", out, *ASKED).code == 0
    before = files(out)
    line = complaint(cli("verify", out, "--heads", "0.0", "--inputs", 9))
    assert f"{out / 'edits'} holds other edits (donors: 1 there, 2 here)" in line
    old = f"sinkscope verify {out} --heads 0.0,1.1 --inputs 9 --donors 1"
    assert line.endswith(f"next: begin anew with --again, or repeat the old command: {old}")
    assert files(out) == before
    assert cli("verify", out, "--heads", "0.0", "--inputs", 9, "--again").code == 0
    edited = sinkscope.open(out).verdicts.query("n_verified > 0")
    assert edited[["layer", "head"]].to_numpy().tolist() == [[0, 0]]


def test_heads_named_later_are_added_and_judged_together(cli: Cli, out: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(out, tmp_path / "whole"))
    assert cli("verify", whole, *ASKED).code == 0
    options = ASKED[ASKED.index("--inputs") :]
    for heads in ("1.1", "0.0", "0.0,1.1"):
        assert cli("verify", out, "--heads", heads, *options).code == 0
    same(sinkscope.open(out).verdicts, sinkscope.open(whole).verdicts, 1e-6)
    same(sinkscope.open(out).effects, sinkscope.open(whole).effects, 1e-6)
