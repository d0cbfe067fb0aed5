"""Loading the towers of open_clip models, and their tokenizer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file

from sinkscope._errors import InputError, MissingExtraError, ModelReferenceError, WeightsError
from sinkscope.models import load, make_inputs
from tests.models._tiny import picture


@pytest.fixture(scope="module")
def whole(tiny_clip: str) -> Any:
    torch.manual_seed(3)
    return open_clip.create_model(tiny_clip, pretrained=None, load_weights=False)


def test_a_file_gives_both_towers(tiny_clip: str, whole: Any, tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    save_file(whole.state_dict(), path)
    reference = f"open_clip:{tiny_clip}?pretrained={path}"
    vision, text = load(reference), load(reference, modality="text")
    assert (vision.modality, text.modality, text.notes) == ("vision", "text", ())
    assert vision.notes[0].startswith("open_clip models have two towers: this is the vision one")
    pixels, ids = torch.randn(2, 3, 28, 28), open_clip.get_tokenizer(tiny_clip)(["a cat", "two dogs"])
    with torch.inference_mode():
        assert torch.allclose(vision.module.eval()(pixels), whole.eval().encode_image(pixels), atol=1e-6)
        assert torch.allclose(text.module(ids), whole.encode_text(ids), atol=1e-6)


def test_a_tag_comes_from_its_repository_with_its_preprocessing_and_activation(
    tiny_clip: str, whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "open_clip_model.safetensors"
    save_file(whole.state_dict(), path)
    tags = {"mine": {"hf_hub": "org/repo/", "quick_gelu": True, "mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 4.0)},
            "old": {"url": "https://example.org/old.pt"}}  # fmt: skip
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr("open_clip.list_pretrained_tags_by_model", lambda name: list(tags))
    monkeypatch.setattr("open_clip.get_pretrained_cfg", lambda name, tag: tags.get(tag, {}))

    def download(repository: str, filename: str, **_: object) -> str:
        asked.append((repository, filename))
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    model = load(f"open_clip:{tiny_clip}", modality="vision")
    assert asked == [("org/repo", "open_clip_model.safetensors")]
    assert model.notes == (
        "weights of the tag mine, the first of 2",
        "activation is QuickGELU, with which mine was trained",
    )
    assert any(type(part).__name__ == "QuickGELU" for part in model.module.modules())
    pixels = next(make_inputs(model, [picture(28, 28)]).batches()).args[0]
    plain = next(make_inputs(load(f"open_clip:{tiny_clip}?pretrained=false"), [picture(28, 28)]).batches())
    assert plain.pictures[0] is not None
    levels = torch.tensor(list(plain.pictures[0].tobytes())).reshape(28, 28, 3).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.1, 0.2, 0.3), (1.0, 2.0, 4.0)))
    assert torch.allclose(pixels[0], (levels - mean) / std, atol=1e-6)
    with pytest.raises(WeightsError, match=f"the tag old of {tiny_clip} has pickled weights only"):
        load(f"open_clip:{tiny_clip}?pretrained=old")
    with pytest.raises(ModelReferenceError, match=r"knows no weights 'nope' .* one of mine, old, or a safetensors"):
        load(f"open_clip:{tiny_clip}?pretrained=nope")


def test_preprocessing_is_open_clips_own(tiny_clip: str) -> None:
    model = load(f"open_clip:{tiny_clip}?pretrained=false")
    expected = image_transform_v2(PreprocessCfg(**model.module.preprocess_cfg), is_train=False)  # type: ignore[arg-type]
    batch = next(make_inputs(model, [picture(61, 83)]).batches())
    assert torch.equal(batch.args[0][0], expected(picture(61, 83)))


def test_text_is_padded_to_the_context_and_valid_up_to_its_end(tiny_clip: str) -> None:
    model = load(f"open_clip:{tiny_clip}?pretrained=false", modality="text")
    texts = ["a cat, on a mat", "dog"]
    batch = next(make_inputs(model, texts).batches())
    assert torch.equal(batch.args[0], open_clip.get_tokenizer(tiny_clip)(texts))
    assert batch.valid is not None and batch.valid.sum(dim=1).tolist() == [8, 3]
    first, second = batch.layouts
    assert first is not None and second is not None
    words = ("word", "word", "punctuation", "word", "word", "word")
    assert first.roles == ("bos", *words, "special", *["pad"] * 5)
    assert second.roles == ("bos", "word", "special", *["pad"] * 10)
    assert first.texts is not None and first.texts[1:4] == ("a ", "cat ", ", ")
    model.run(batch)


def test_padding_that_the_tower_reads_is_valid(tiny_clip: str) -> None:
    model = load(f"open_clip:{tiny_clip}?pretrained=false", modality="text")
    model.module.register_buffer("attn_mask", None)
    batch = next(make_inputs(model, ["dog"]).batches())
    assert batch.valid is None
    assert batch.layouts[0] is not None and batch.layouts[0].roles[3:] == ("pad",) * 10


def test_a_text_longer_than_the_context_is_never_cut(tiny_clip: str, tmp_path: Path) -> None:
    model = load(f"open_clip:{tiny_clip}?pretrained=false", modality="text")
    with pytest.raises(InputError, match=r"string 0 of 15 tokens; expected at most 13, as strings are never cut"):
        next(make_inputs(model, ["dog " * 13]).batches())
    file = tmp_path / "long.txt"
    file.write_text("dog " * 25)
    inputs = make_inputs(model, file)
    assert [len(batch.names) for batch in inputs.batches()] == [2]
    assert inputs.identity["length"] == 13 and inputs.identity["tokens_unused"] == 3


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("open_clip:no-such", ModelReferenceError, "open_clip has no model no-such"),
        ("open_clip:ViT-B-32", ModelReferenceError, "has no timm/vit_base_patch32_clip_224.openai for you"),
        ("open_clip:ViT-B-32?pretrained=false&zebra=1", ModelReferenceError, "unexpected keyword argument 'zebra'"),
        ("open_clip:ViT-B-32?pretrained=/no/file.safetensors", WeightsError, "no weight file /no/file.safetensors"),
    ],
)
def test_references_that_cannot_be_loaded(reference: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(reference)


def test_a_model_without_weights_says_so(tiny_clip: str) -> None:
    with pytest.raises(ModelReferenceError, match=f"open_clip has no weights for {tiny_clip}") as caught:
        load(f"open_clip:{tiny_clip}")
    assert caught.value.next_step == f"open_clip:{tiny_clip}?pretrained=false"


def test_without_open_clip_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtraError) as caught:
        load("open_clip:ViT-B-32")
    assert caught.value.next_step == 'pip install "sinkscope[open-clip]"'
