"""Modules handed in from Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from sinkscope._errors import InputError, OptionError
from sinkscope.models import load, make_inputs
from tests.models._tiny import HF, bert_tokenizer, picture, save, save_processor


@pytest.mark.parametrize(
    ("family", "modality"),
    [("vit", "vision"), ("dinov3", "vision"), ("clip", "unknown"), ("bert", "text"), ("t5", "text")],
)
def test_transformers_modules_tell_what_they_take(family: str, modality: str) -> None:
    module = HF[family]()
    model = load(module)
    assert (model.module, model.modality) == (module, modality)
    assert model.reference == f"module:{type(module).__name__}"


def test_other_modules(tiny_clip: str) -> None:
    vit = timm.create_model("vit_tiny_patch16_224", embed_dim=24, depth=1, num_heads=2, img_size=28, patch_size=7)
    visual = load(f"open_clip:{tiny_clip}?pretrained=false").module
    for module in (vit, visual):
        model = load(module)
        assert model.modality == "vision"
        assert next(make_inputs(model, [picture(40, 40)]).batches()).args[0].shape == (1, 3, 28, 28)
    assert load(nn.Linear(3, 5)).modality == "unknown"
    assert load(nn.Linear(3, 5), modality="text").modality == "text"


def test_a_module_is_used_as_it_is() -> None:
    module = HF["dinov2"]().to(torch.float64).train()
    model = load(module)
    assert (model.device, model.dtype, module.training) == ("cpu", "float64", True)
    with pytest.raises(OptionError, match=r"dtype, device_map or tp_plan with a module"):
        load(module, dtype="float32")
    with pytest.raises(OptionError, match=r"device 'cuda' with a module on cpu"):
        load(module, device="cuda")
    with pytest.raises(OptionError, match=r"text inputs for a Dinov2Model; expected vision inputs"):
        load(module, modality="text")


def test_a_module_from_a_folder_finds_its_preprocessing_there(tmp_path: Path) -> None:
    saved = save("dinov2", tmp_path / "vision")
    save_processor(tmp_path / "vision")
    module = type(saved).from_pretrained(tmp_path / "vision")
    assert next(make_inputs(load(module), [picture(40, 50)]).batches()).args[0].shape == (1, 3, 28, 28)
    saved = save("bert", tmp_path / "text")
    bert_tokenizer(tmp_path / "text")
    module = type(saved).from_pretrained(tmp_path / "text")
    assert next(make_inputs(load(module), ["the cat"]).batches()).kwargs["input_ids"].tolist() == [[2, 5, 6, 3]]


def test_a_module_made_in_memory_has_none() -> None:
    with pytest.raises(InputError, match=r"pictures for module:Dinov2Model, a model that takes vision; .*, or tensors"):
        make_inputs(load(HF["dinov2"]()), [picture(40, 50)])
    with pytest.raises(InputError, match=r"pictures for module:Linear, a model of unknown modality"):
        make_inputs(load(nn.Linear(3, 5)), [picture(40, 50)])
    with pytest.raises(InputError, match=r"text for module:Linear, a model of unknown modality"):
        make_inputs(load(nn.Linear(3, 5)), ["a text"])
