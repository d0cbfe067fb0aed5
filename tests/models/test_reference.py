"""The text forms of references."""

from __future__ import annotations

from pathlib import Path

import pytest

from sinkscope._errors import ModelReferenceError
from sinkscope.models._reference import Reference, parse_reference


@pytest.mark.parametrize(
    ("text", "scheme", "name", "options"),
    [
        ("hf:org/name", "hf", "org/name", {}),
        ("hf:/a/folder?pretrained=false", "hf", "/a/folder", {"pretrained": False}),
        ("timm:vit?img_size=518&drop=0.5", "timm", "vit", {"img_size": 518, "drop": 0.5}),
        ("timm:vit?img_size=(21,35)&global_pool=avg", "timm", "vit", {"img_size": (21, 35), "global_pool": "avg"}),
        ("timm:vit?class_token=False&x=None", "timm", "vit", {"class_token": False, "x": None}),
        ("open_clip:ViT-B-32?pretrained=laion2b", "open_clip", "ViT-B-32", {"pretrained": "laion2b"}),
        ("timm:vit?checkpoint=/a%20b/c.safetensors", "timm", "vit", {"checkpoint": "/a b/c.safetensors"}),
        ("zoo:minilm-l6", "zoo", "minilm-l6", {}),
    ],
)
def test_forms(text: str, scheme: str, name: str, options: dict[str, object]) -> None:
    assert parse_reference(text) == Reference(text, scheme, name, options)


def test_a_folder_needs_no_scheme(tmp_path: Path) -> None:
    assert parse_reference(f"{tmp_path}?seed=3") == Reference(f"{tmp_path}?seed=3", "hf", str(tmp_path), {"seed": 3})


@pytest.mark.parametrize("text", ["facebook/dinov2-small", "onnx:model", "timm:", ""])
def test_other_forms_are_refused_with_the_list(text: str) -> None:
    with pytest.raises(ModelReferenceError) as caught:
        parse_reference(text)
    assert caught.value.found == f"model reference '{text}'"
    forms = "zoo:NAME, hf:NAME or hf:FOLDER, timm:NAME, open_clip:NAME"
    assert caught.value.expected == f"an existing folder or one of {forms}"


def test_options_without_a_value_are_refused() -> None:
    with pytest.raises(ModelReferenceError, match=r"options 'pretrained' in the reference timm:vit"):
        parse_reference("timm:vit?pretrained")
