"""Treatments saved to a folder and put back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sinkscope
from sinkscope import treat
from sinkscope._errors import OptionError, WeightsError
from sinkscope.models import Model
from sinkscope.treat import TREATMENTS, AttentionBias, Form, Gate, GlobalPathway, HeadNorm, Treatment
from tests.treat._models import BUILD, HARMLESS, example, learned, model, output, sinks


@pytest.mark.parametrize("family", BUILD)
def test_round_trip(family: str, tmp_path: Path) -> None:
    plain, x = model(family), example(family)
    treated = learned(sinkscope.treat(plain, sinks(), probe=example(family, seed=3)))
    treat.save(treated, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["treatment.json", "treatment.safetensors"]
    again = treat.load(plain, tmp_path)
    assert again is not plain and torch.equal(output(again, x), output(treated, x))
    assert treat.treatments_of(again) == treat.treatments_of(treated)
    assert treat.load(plain, tmp_path, inplace=True) is plain
    assert torch.equal(output(plain, x), output(treated, x))


@pytest.mark.parametrize(
    "treatment",
    [
        *HARMLESS.values(),
        Form("polynomial", p=3, layers=(0, 2)),
        GlobalPathway(7, "hier"),
        AttentionBias(weighed=False, layers=(1,)),
    ],
    ids=repr,
)
def test_options_survive(treatment: Treatment, tmp_path: Path) -> None:
    plain, x = model("vit"), example("vit")
    treated = sinkscope.treat(plain, treatment, probe=x)
    treat.save(treated, tmp_path)
    again = treat.load(plain, tmp_path)
    assert treat.treatments_of(again) == (treatment,)
    torch.testing.assert_close(output(again, x), output(treated, x), rtol=0, atol=0)


def test_only_what_was_added_is_written(tmp_path: Path) -> None:
    plain, x = model("llama"), example("llama")
    treated = sinkscope.treat(sinkscope.load(plain), sinks(), probe=x)
    treat.save(treated, tmp_path)
    content = json.loads((tmp_path / "treatment.json").read_text())
    tensors = load_file(tmp_path / "treatment.safetensors")
    assert tensors.keys() == treated.module.state_dict().keys() - plain.state_dict().keys()
    assert {name: entry["shape"] for name, entry in content["tensors"].items()} == {
        name: list(value.shape) for name, value in tensors.items()
    }
    assert [entry["name"] for entry in content["treatments"]] == ["gate", "gate", "learned-sink", "head-norm"]
    assert content["model"]["class"] == "LlamaForCausalLM" and content["sinkscope"] == sinkscope.__version__
    assert content["model"]["sha256"] == sinkscope.load(plain).weights_sha256()
    assert isinstance(treat.load(sinkscope.load(plain), tmp_path), Model)


def saved(folder: Path) -> tuple[Any, Any]:
    plain = model("vit")
    treated = sinkscope.treat(plain, [Gate(), HeadNorm()])
    treat.save(treated, folder)
    return plain, treated


def test_other_weights_are_refused_with_both_hashes(tmp_path: Path) -> None:
    plain, _ = saved(tmp_path)
    other = model("vit", seed=7)
    hashes = [sinkscope.load(made).weights_sha256()[:12] for made in (plain, other)]
    with pytest.raises(WeightsError, match=rf"is for ViT.*{hashes[0]}.* the model is ViT.*{hashes[1]}.*same weights"):
        treat.load(other, tmp_path, inplace=True)
    assert treat.treatments_of(other) == ()


def test_other_sizes_and_number_types_are_named(tmp_path: Path) -> None:
    plain, _ = saved(tmp_path)
    with pytest.raises(WeightsError, match=r"layers 3, width 21, heads 3, .* BertModel \(layers 3, width 30, heads 3"):
        treat.load(model("bert"), tmp_path)
    with pytest.raises(WeightsError, match=r"kv_heads 3, float32, .* kv_heads 3, bfloat16, .*same number type"):
        treat.load(plain.to(torch.bfloat16), tmp_path)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    plain, _ = saved(tmp_path)
    path = tmp_path / "treatment.safetensors"
    tensors = load_file(path)
    name = "vit.layers.1.attention.sinkscope.norm.gain"
    save_file({**tensors, name: torch.ones(5)}, path)
    with pytest.raises(WeightsError, match=r"norm\.gain in .* has shape \(5,\); expected \(7,\)"):
        treat.load(plain, tmp_path, inplace=True)
    assert treat.treatments_of(plain) == () and not any("sinkscope" in key for key in plain.state_dict())
    save_file({key: value for key, value in tensors.items() if key != name}, path)
    with pytest.raises(WeightsError, match=r"norm\.gain in .* has shape none; expected \(7,\)"):
        treat.load(plain, tmp_path)


def test_folders_that_are_none(tmp_path: Path) -> None:
    plain, _ = saved(tmp_path / "good")
    with pytest.raises(WeightsError, match=r"no saved treatment in .*absent"):
        treat.load(plain, tmp_path / "absent")
    path = tmp_path / "good" / "treatment.json"
    content = json.loads(path.read_text())
    broken: list[tuple[str, str]] = [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        (json.dumps({**content, "schema": 99}), "has schema 99; expected schema 1"),
        (
            json.dumps({**content, "treatments": [{"name": "magic"}]}),
            "the treatment 'magic' in .*; expected one",
        ),
        (json.dumps({**content, "treatments": [{"name": "gate", "kind": "round"}]}), "options of gate .* do not fit"),
        (json.dumps({**content, "treatments": [{"name": "gate", "size": 3}]}), "options of gate .* do not fit"),
    ]
    for text, message in broken:
        path.write_text(text)
        with pytest.raises(WeightsError, match=message):
            treat.load(plain, tmp_path / "good")
    path.write_text(json.dumps(content))
    (tmp_path / "good" / "treatment.safetensors").write_bytes(b"x" * 30)
    with pytest.raises(WeightsError, match="corrupt or cut off"):
        treat.load(plain, tmp_path / "good")


def test_what_cannot_be_saved_or_loaded_onto(tmp_path: Path) -> None:
    plain, treated = saved(tmp_path)
    with pytest.raises(OptionError, match="ViTForImageClassification is not treated"):
        treat.save(plain, tmp_path)
    with pytest.raises(OptionError, match=r"is treated already; .* call undo first"):
        treat.load(treated, tmp_path)


def test_saving_again_replaces(tmp_path: Path) -> None:
    plain, _ = saved(tmp_path)
    treat.save(sinkscope.treat(plain, Gate("elementwise")), tmp_path)
    assert treat.treatments_of(treat.load(plain, tmp_path)) == (Gate("elementwise"),)


def test_every_treatment_is_found_by_its_name() -> None:
    assert all(cls.name == name for name, cls in TREATMENTS.items())
    assert {"gate", "learned-sink", "attention-bias", "key-bias", "off-by-one", "head-norm"} <= TREATMENTS.keys()
    assert all(len(cls.source) > 5 for cls in TREATMENTS.values())
