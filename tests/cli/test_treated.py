"""`treated:FOLDER` as a model: wherever it is read from, and only as long as it is what it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sinkscope
from sinkscope._errors import ModelReferenceError, OptionError, WeightsError
from sinkscope.treat import Gate, RemoveSinks, treatments_of
from tests.cli._ended import complaint
from tests.cli.conftest import Cli
from tests.models._tiny import picture


@pytest.fixture(scope="module")
def base(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vision model with queries that pick one key, so that it has sinks."""
    folder = Path(shutil.copytree(vit, tmp_path_factory.mktemp("models") / "sharp"))
    path = folder / "model.safetensors"
    weights = load_file(path)
    save_file({n: 300 * w if n.endswith("query.weight") else w for n, w in weights.items()}, path, {"format": "pt"})
    return folder


@pytest.fixture
def moving(base: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model `base`, and `gated`, which was made from it by a relative path."""
    shutil.copytree(base, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    assert cli("treat", "base", "--with", "gate", "--out", "gated").code == 0
    return tmp_path


def change(path: Path, by: float = 0.5) -> None:
    """As a tuning would."""
    save_file({name: value + by for name, value in load_file(path).items()}, path)


def test_it_is_found_from_any_folder(moving: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = json.loads((moving / "gated" / "treated.json").read_text())
    assert facts["base"]["given"] == "base"
    (moving / "elsewhere").mkdir()
    monkeypatch.chdir(moving / "elsewhere")
    for reference in ("treated:../gated", "../gated", f"treated:{moving / 'gated'}"):
        model = sinkscope.load(reference)
        assert treatments_of(model) == (Gate(),) and model.reference == reference


def test_a_path_among_the_options_is_kept_too(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm: Any = pytest.importorskip("timm", reason="the extra timm is not installed")
    sizes = {"img_size": 15, "patch_size": 5, "embed_dim": 21, "depth": 2, "num_heads": 3}
    state = timm.create_model("vit_tiny_patch16_224", **sizes).state_dict()
    monkeypatch.chdir(tmp_path)
    save_file(state, tmp_path / "weights.safetensors")
    options = "&".join(f"{name}={value}" for name, value in {**sizes, "checkpoint": "weights.safetensors"}.items())
    assert cli("treat", f"timm:vit_tiny_patch16_224?{options}", "--with", "gate", "--out", "gated").code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model = sinkscope.load("treated:../gated")
    assert torch.equal(model.module.state_dict()["pos_embed"], state["pos_embed"])


def test_diagnose_and_verify(moving: Path, cli: Cli) -> None:
    (moving / "pictures").mkdir()
    for number in range(9):
        picture(41, 43, number).save(moving / "pictures" / f"p{number}.png")
    ended = cli("diagnose", "treated:gated", "--images", "pictures", "--out", "out")
    assert ended.code == 0, ended.err
    assert "note: treated with Gate(" in ended.out
    facts = sinkscope.open("out").manifest["model"]
    assert facts["reference"] == "treated:gated" and facts["class"] == "Dinov2Model"
    assert facts["parameters"] == sinkscope.load("base").parameters + 2 * (2 * 24 + 2)  # W x + b, of 2 heads twice
    ended = cli("verify", "out", "--heads", "0.0", "--inputs", 9, "--donors", 1)
    assert ended.code == 0, ended.err
    verdicts = sinkscope.open("out").verdicts
    edited = verdicts[verdicts["n_verified"].notna()]
    assert list(zip(edited["layer"], edited["head"], strict=True)) == [(0, 0)]

    untreated = cli("diagnose", "base", "--images", "pictures", "--out", "plain")
    assert untreated.code == 0
    assert sinkscope.open("plain").manifest["model"]["weights_sha256"] != facts["weights_sha256"]
    change(moving / "gated" / "treatment.safetensors")
    line = complaint(cli("verify", "out", "--heads", "0.1", "--inputs", 9, "--donors", 1))
    assert "the weights of treated:gated are not those of out" in line and facts["weights_sha256"] in line


def test_treatments_without_tensors_count_as_weights(base: Path) -> None:
    model = sinkscope.load(str(base))
    hashes = [sinkscope.treat(model, RemoveSinks(how, "first")).weights_sha256() for how in ("mask", "zero", "mask")]
    assert hashes[0] == hashes[2]
    assert len({*hashes, model.weights_sha256()}) == 3


def test_the_untreated_model_keeps_its_hash(base: Path) -> None:
    model = sinkscope.load(str(base))
    before = model.weights_sha256()
    sinkscope.treat.undo(sinkscope.treat(model, Gate(), inplace=True))
    assert model.weights_sha256() == before


def test_a_model_that_has_changed_is_refused(moving: Path, cli: Cli, pictures: Path) -> None:
    path = moving / "base" / "model.safetensors"
    weights = load_file(path)
    save_file({name: value * 1.5 for name, value in weights.items()}, path, {"format": "pt"})
    line = complaint(cli("diagnose", "treated:gated", "--images", pictures, "--out", "out"), moving / "out")
    assert "the treatment in gated is for Dinov2Model" in line and "the same weights" in line


def test_a_model_that_is_gone(moving: Path, cli: Cli, pictures: Path) -> None:
    (moving / "base").rename(moving / "moved")
    line = complaint(cli("diagnose", "treated:gated", "--images", pictures, "--out", "out"), moving / "out")
    assert f"{moving / 'base'}" in line and "which treated:gated was made from" in line
    assert line.endswith("next: put it back, or in Python: sinkscope.treat.load(MODEL, 'gated')")
    assert treatments_of(sinkscope.treat.load(sinkscope.load("moved"), "gated")) == (Gate(),)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"dtype": "bfloat16"}, OptionError, r"dtype bfloat16 for treated:gated; .*sinkscope treat base --dtype bfl"),
        ({"modality": "text"}, OptionError, "text inputs for treated:gated"),
        ({"device_map": "auto"}, OptionError, "device_map or tp_plan for treated:gated"),
    ],
)
def test_how_it_cannot_be_loaded(options: dict[str, Any], error: type[Exception], says: str, moving: Path) -> None:
    with pytest.raises(error, match=says):
        sinkscope.load("treated:gated", **options)


def test_the_number_type_is_kept(moving: Path, cli: Cli) -> None:
    assert cli("treat", "base", "--with", "gate", "--dtype", "bfloat16", "--out", "half").code == 0
    assert sinkscope.load("treated:half").dtype == "bfloat16"
    assert sinkscope.load("treated:half", dtype="bfloat16").dtype == "bfloat16"


def _without_facts(folder: Path) -> None:
    (folder / "treated.json").unlink()


def _cut_off(folder: Path) -> None:
    (folder / "treated.json").write_text("{")


def _of_the_future(folder: Path) -> None:
    facts = json.loads((folder / "treated.json").read_text())
    (folder / "treated.json").write_text(json.dumps(facts | {"schema": 99}))


def _incomplete(folder: Path) -> None:
    facts = json.loads((folder / "treated.json").read_text())
    (folder / "treated.json").write_text(json.dumps({name: facts[name] for name in facts if name != "base"}))


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (_without_facts, ModelReferenceError, r"a treatment without its model; .*sinkscope.treat.load\(MODEL, 'gated'"),
        (_cut_off, WeightsError, r"gated/treated.json is damaged"),
        (_incomplete, WeightsError, r"gated/treated.json is damaged \(KeyError: 'base'\)"),
        (_of_the_future, WeightsError, "gated/treated.json has schema 99; expected schema 1"),
    ],
)
def test_a_folder_that_is_no_longer_whole(
    damage: Callable[[Path], None], error: type[Exception], says: str, moving: Path
) -> None:
    damage(moving / "gated")
    with pytest.raises(error, match=says):
        sinkscope.load("treated:gated")


def test_no_folder_at_all() -> None:
    for reference in ("treated:", "treated:no/such"):
        with pytest.raises(ModelReferenceError, match=rf"model reference '{reference}'; .*check the path"):
            sinkscope.load(reference)


def test_models_lists_the_form(cli: Cli) -> None:
    assert "treated:FOLDER" in cli("models").out
