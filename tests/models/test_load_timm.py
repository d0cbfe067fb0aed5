"""Loading timm models."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from sinkscope._errors import MissingExtraError, ModelReferenceError, OptionError, WeightsError
from sinkscope.models import load, make_inputs
from tests.models._tiny import picture

DATA: Any = importlib.import_module("timm.data")
SMALL = "embed_dim=24&depth=2&num_heads=2&patch_size=7&img_size=28"
REFERENCE = f"timm:vit_tiny_patch16_224?{SMALL}"


def test_random_weights_are_seeded_and_noted() -> None:
    first, again, other = (load(f"{REFERENCE}&pretrained=false{seed}") for seed in ("", "", "&seed=7"))
    assert first.weights_sha256() == again.weights_sha256() != other.weights_sha256()
    assert (first.modality, first.notes, first.module.training) == ("vision", ("weights are random (seed 0)",), False)


def test_a_checkpoint_file_is_loaded_and_fitted_to_the_size(tmp_path: Path) -> None:
    saved = load(f"{REFERENCE}&pretrained=false&seed=5")
    path = tmp_path / "vit.safetensors"
    save_file(saved.module.state_dict(), path)
    model = load(f"{REFERENCE}&checkpoint={path}", dtype="float64")
    assert (model.notes, model.dtype) == ((), "float64")
    assert load(f"{REFERENCE}&checkpoint={path}").weights_sha256() == saved.weights_sha256()
    larger = load(f"timm:vit_tiny_patch16_224?{SMALL.replace('28', '(28,42)')}&checkpoint={path}")
    assert larger.module.pos_embed.shape == (1, 1 + 4 * 6, 24)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vit.safetensors"
    state = load(f"{REFERENCE}&pretrained=false").module.state_dict()
    save_file({name: value for name, value in state.items() if name != "norm.bias"}, path)
    with pytest.raises(WeightsError, match=r'do not fit vit_tiny_patch16_224 .*Missing key.*"norm.bias"'):
        load(f"{REFERENCE}&checkpoint={path}")


def test_weights_of_the_hub_are_safetensors_of_the_published_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    path = tmp_path / "model.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=21843).state_dict(), path)

    def download(repository: str, filename: str, **_: object) -> str:
        asked.append((repository, filename))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    model = load("timm:vit_tiny_patch16_224.augreg_in21k")
    assert asked == [("timm/vit_tiny_patch16_224.augreg_in21k", "model.safetensors")]
    assert model.notes == ()
    key = "blocks.3.attn.qkv.weight"
    assert torch.equal(model.module.state_dict()[key], load_file(path)[key])


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        (
            "timm:vit_tiny_patch16",
            ModelReferenceError,
            "timm has no model vit_tiny_patch16; expected a name of timm, for",
        ),
        (f"{REFERENCE}&pretrained=false&zebra=1", ModelReferenceError, r"unexpected keyword argument 'zebra'"),
        (
            "timm:vit_tiny_patch16_224",
            ModelReferenceError,
            "hub cannot be reached, or has no timm/vit_tiny_patch16_224",
        ),
        ("timm:vit_small_patch16_18x2_224", WeightsError, "timm has no safetensors weights for vit_small_patch16_18x2"),
        ("timm:vit_tiny_patch16_224?checkpoint=/no/file.safetensors", WeightsError, "no weight file /no/file.safeten"),
    ],
)
def test_references_that_cannot_be_loaded(reference: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(reference)


def test_options_that_do_not_fit() -> None:
    with pytest.raises(OptionError, match=r"text inputs for timm:.*; expected vision inputs"):
        load(f"{REFERENCE}&pretrained=false", modality="text")
    with pytest.raises(OptionError, match=r"device_map or tp_plan"):
        load(f"{REFERENCE}&pretrained=false", device_map="auto")


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError) as caught:
        load(REFERENCE)
    assert caught.value.next_step == 'pip install "sinkscope[timm]"'


def test_preprocessing_is_timms_own() -> None:
    model = load(f"{REFERENCE}&pretrained=false")
    config = {**DATA.resolve_data_config({}, model=model.module), "input_size": (3, 28, 28)}
    expected = DATA.create_transform(**config, is_training=False)
    image = picture(61, 83)
    batch = next(make_inputs(model, [image]).batches())
    assert batch.args[0].shape == (1, 3, 28, 28)
    assert torch.equal(batch.args[0][0], expected(image))


def test_another_size_needs_another_model() -> None:
    fixed, free = (load(f"{REFERENCE}&pretrained=false{more}") for more in ("", "&dynamic_img_size=true"))
    with pytest.raises(Exception, match=r"35 x 35 pixels; expected 28 x 28, .*\?img_size=35"):
        make_inputs(fixed, [picture(50, 50)], size=35)
    batch = next(make_inputs(free, [picture(50, 50)], size=35).batches())
    layout = batch.layouts[0]
    assert layout is not None and len(layout) == 26 and batch.args[0].shape == (1, 3, 35, 35)
