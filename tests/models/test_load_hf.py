"""Loading models in the transformers layout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sinkscope._errors import MissingExtraError, ModelReferenceError, OptionError, ResourceError, WeightsError
from sinkscope.models import load
from tests.models._tiny import HF, save


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("family", ["vit", "dinov2", "dinov2_registers", "dinov3", "deit", "siglip_vision"])
@pytest.mark.parametrize("form", ["hf:{}", "{}"])
def test_vision_models_load_as_they_were_saved(family: str, form: str, tmp_path: Path) -> None:
    saved = save(family, tmp_path)
    model = load(form.format(tmp_path))
    assert (model.modality, model.notes, type(model.module)) == ("vision", (), type(saved))
    assert not model.module.training
    pixels = torch.randn(2, 3, 28, 28)
    with torch.inference_mode():
        assert torch.equal(model.module(pixels)[0], saved(pixels)[0])


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5"])
def test_text_models_keep_the_head_that_the_config_names(family: str, tmp_path: Path) -> None:
    saved = save(family, tmp_path)
    model = load(str(tmp_path))
    assert (model.modality, model.notes, type(model.module)) == ("text", (), type(saved))


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_dual_encoder_gives_the_tower_asked_for(family: str, tower: Any, tmp_path: Path) -> None:
    saved = save(family, tmp_path)
    model = load(str(tmp_path), modality=tower)
    assert (model.modality, model.notes) == (tower, ())
    expected = getattr(saved, f"{tower}_model")
    given = torch.randn(2, 3, 28, 28) if tower == "vision" else torch.randint(3, 101, (2, 13))
    with torch.inference_mode():
        assert torch.equal(model.module(given)[0], expected(given)[0])


def test_a_dual_encoder_without_a_modality_gives_the_vision_tower_and_says_so(tmp_path: Path) -> None:
    save("clip", tmp_path)
    model = load(str(tmp_path))
    assert model.modality == "vision"
    assert model.notes == ("CLIPModel has two towers: this is the vision one, modality='text' takes the other",)


def test_the_config_alone_gives_seeded_random_weights(tmp_path: Path) -> None:
    save("dinov3", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = torch.random.get_rng_state()
    first, again, other = (load(f"hf:{tmp_path}?pretrained=false{seed}") for seed in ("", "", "&seed=7"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.weights_sha256() == again.weights_sha256() != other.weights_sha256()
    assert (first.notes, other.notes) == (("weights are random (seed 0)",), ("weights are random (seed 7)",))
    assert first.reference == f"hf:{tmp_path}?pretrained=false"


def test_a_dual_config_without_architectures_still_gives_a_tower(tmp_path: Path) -> None:
    HF["clip"]().config.save_pretrained(tmp_path)
    change_config(tmp_path, architectures=None)
    model = load(f"{tmp_path}?pretrained=false", modality="text")
    assert type(model.module).__name__ == "CLIPTextModel"


def test_the_dtype_is_the_checkpoints_unless_asked_otherwise(tmp_path: Path) -> None:
    HF["dinov2"]().to(torch.float16).save_pretrained(tmp_path)
    assert load(str(tmp_path)).dtype == "float16"
    assert load(str(tmp_path), dtype="float64").dtype == "float64"
    assert load(f"{tmp_path}?pretrained=false", dtype="bfloat16").dtype == "bfloat16"


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flex_attention"])
@pytest.mark.parametrize("query", ["", "?pretrained=false"])
def test_attention_that_hides_its_scores_is_replaced_and_noted(implementation: str, query: str, tmp_path: Path) -> None:
    save("dinov2", tmp_path)
    change_config(tmp_path, _attn_implementation=implementation, attn_implementation=implementation)
    model = load(f"{tmp_path}{query}")
    assert model.module.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    note = f"attention runs as sdpa or eager instead of {implementation}, which cannot be captured"
    assert note in model.notes


def test_attention_without_sdpa_runs_eager(tmp_path: Path) -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=101, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        head_dim=12, intermediate_size=37, num_local_experts=2, num_experts_per_tok=1, pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    GptOssForCausalLM(config).save_pretrained(tmp_path)
    change_config(tmp_path, attn_implementation="flash_attention_2")
    model = load(str(tmp_path))
    assert model.module.config._attn_implementation == "eager"  # type: ignore[union-attr]


def test_weights_missing_in_the_body_are_refused_by_name(tmp_path: Path) -> None:
    save("dinov2", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    gone = next(name for name in state if "layer.1" in name and name.endswith("norm2.bias"))
    save_file({k: v for k, v in state.items() if k != gone}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"do not fit its config.json: 1 missing, the first \S*norm2.bias"):
        load(str(tmp_path))


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    save("vit", tmp_path)
    change_config(tmp_path, intermediate_size=41)
    with pytest.raises(WeightsError, match=r"of the wrong shape, the first \S*mlp") as caught:
        load(str(tmp_path))
    assert "?pretrained=false" in caught.value.next_step


def test_a_random_head_and_unused_weights_are_noted(tmp_path: Path) -> None:
    save("dinov2", tmp_path)
    change_config(tmp_path, architectures=["Dinov2ForImageClassification"])
    model = load(str(tmp_path))
    assert model.notes == (
        "random, because not in the weights (head or pooler, behind all attention): classifier.bias, classifier.weight",
    )
    save("vit", tmp_path)
    change_config(tmp_path, architectures=["ViTModel"])
    notes = load(str(tmp_path)).notes
    assert any("pooler.dense.bias" in note for note in notes)
    assert "2 weights of the files are not part of ViTModel, first classifier.bias" in notes


def test_an_architecture_that_is_not_in_transformers_is_noted(tmp_path: Path) -> None:
    save("gpt2", tmp_path)
    change_config(tmp_path, architectures=["MyOwnModel"])
    note = "architecture MyOwnModel is not in transformers"
    assert any(note in line for line in load(str(tmp_path)).notes)


def test_a_model_of_the_hub_without_network() -> None:
    with pytest.raises(ModelReferenceError) as caught:
        load("hf:facebook/dinov2-small-that-is-not-cached")
    assert caught.value.found.startswith("the hub cannot be reached, or has no facebook/dinov2-small-that-is")
    assert "hf:/path/to/model" in caught.value.next_step


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("hf:/nowhere/at/all", "no folder /nowhere/at/all"),
        ("hf:{}", "no config.json in {}"),
        ("hf:{}?size=3", "options ['size'] in the reference hf:{}?size=3"),
        ("hf:{}?pretrained=laion", "options laion in the reference hf:{}?pretrained=laion"),
    ],
)
def test_references_to_nothing(reference: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(ModelReferenceError) as caught:
        load(reference.format(tmp_path))
    assert caught.value.found == found.format(tmp_path)


@pytest.mark.parametrize(
    "config", ["{", '{"model_type": "no-such-model"}', '{"model_type": "vit", "hidden_size": "wide"}']
)
def test_a_broken_config(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelReferenceError, match=f"a configuration in {tmp_path} that transformers cannot use"):
        load(str(tmp_path))


def test_a_model_with_its_own_code_needs_consent(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "code.OwnConfig"}}')
    with pytest.raises(ModelReferenceError, match=r"runs Python code that comes with the model") as caught:
        load(str(tmp_path))
    assert "trust_remote_code=True" in caught.value.next_step


OWN_CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel

class OwnConfig(PretrainedConfig):
    model_type = "own"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    main_input_name = "input_ids"

    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(7, 5)
        self.post_init()

    def forward(self, input_ids):
        return self.table(input_ids)
"""


def test_with_consent_the_models_own_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "code.py").write_text(OWN_CODE)
    auto = {"AutoConfig": "code.OwnConfig", "AutoModel": "code.OwnModel"}
    config = {"model_type": "own", "architectures": ["OwnModel"], "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    table = torch.arange(35.0).reshape(7, 5)
    save_file({"table.weight": table}, folder / "model.safetensors", metadata={"format": "pt"})
    model = load(str(folder), trust_remote_code=True)
    assert (type(model.module).__name__, model.modality, model.notes) == ("OwnModel", "text", ())
    assert torch.equal(model.module(torch.tensor([3])), table[3:4])


@pytest.mark.parametrize(
    ("error", "kind", "found"),
    [
        (
            OSError("org/a does not appear to have a file named model.safetensors"),
            WeightsError,
            "no safetensors weights",
        ),
        (OSError("We couldn't connect to the hub"), ModelReferenceError, "the hub cannot be reached"),
        (SafetensorError("header too large"), WeightsError, "corrupt or cut off weights"),
        (torch.OutOfMemoryError("x"), ResourceError, "memory ran out while loading"),
        (RuntimeError("issues during conversion\nmore"), WeightsError, "weights of .* that do not load .issues during"),
        (ImportError("needs `sentencepiece`"), MissingExtraError, "needs a package that is missing"),
        (ValueError("Unrecognized rope"), ModelReferenceError, "does not load .Unrecognized rope"),
    ],
)
def test_what_transformers_raises_becomes_one_line(
    error: Exception, kind: type[Exception], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    save("dinov2", tmp_path)
    monkeypatch.setattr("transformers.Dinov2Model.from_pretrained", fail)
    with pytest.raises(kind, match=found) as caught:
        load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_inputs_of_the_other_kind(tmp_path: Path) -> None:
    save("llama", tmp_path)
    with pytest.raises(OptionError, match=r"vision inputs for .*, a LlamaForCausalLM; expected text inputs"):
        load(str(tmp_path), modality="vision")


@pytest.mark.parametrize(
    ("options", "found", "expected"),
    [
        ({"dtype": "int8"}, "dtype 'int8'", "one of float64, float32, bfloat16, float16"),
        ({"device": "zebra"}, "device 'zebra'", "a torch device such as cpu or cuda:0"),
        ({"device": "xpu"}, "device 'xpu'", "one of cpu"),
    ],
)
def test_options_that_cannot_be(options: dict[str, str], found: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        load(str(tmp_path), **options)  # type: ignore[arg-type]
    assert (caught.value.found, caught.value.expected) == (found, expected)


def test_a_device_map_needs_accelerate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinkscope.models._spread.find_spec", lambda name: None)
    save("dinov2", tmp_path)
    with pytest.raises(MissingExtraError, match=r"accelerate") as caught:
        load(str(tmp_path), device_map="auto")
    assert caught.value.next_step == "pip install accelerate"
