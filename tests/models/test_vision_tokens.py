"""Roles of vision tokens, checked by what the model does: a changed patch must move the token that bears its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision.models import VisionTransformer

from sinkscope._errors import InputError
from sinkscope.models import load, make_inputs
from sinkscope.models._vision_tokens import VisionTokens, vision_tokens
from tests.models._tiny import HF, token_states

HEIGHT, WIDTH, PATCH = 21, 35, 7
EMBEDDED = {
    "cls": ("cls_token", "class_embedding", "class_token"),
    "distill": ("distillation_token", "dist_token"),
    "register": ("register_tokens", "reg_token"),
}
MARKS = {"cls": 11.0, "distill": 13.0, "register": 17.0}


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    sizes: dict[str, Any] = {
        "img_size": (HEIGHT, WIDTH),
        "patch_size": PATCH,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
    }
    return lambda: timm.create_model(name, pretrained=False, **sizes, **options)


class Wrapped(nn.Module):
    """Somebody's own model around a known vision transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = HF["dinov2_registers"]()

    def forward(self, images: torch.Tensor) -> Any:
        return self.body(images).last_hidden_state


FAMILIES: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "vit": (HF["vit"], ("cls",)),
    "deit": (HF["deit"], ("cls", "distill")),
    "dinov2": (HF["dinov2"], ("cls",)),
    "dinov2_registers": (HF["dinov2_registers"], ("cls", *["register"] * 3)),
    "dinov3": (HF["dinov3"], ("cls", *["register"] * 5)),
    "beit": (HF["beit"], ("cls",)),
    "ijepa": (HF["ijepa"], ()),
    "clip": (HF["clip_vision"], ("cls",)),
    "siglip": (HF["siglip_vision"], ()),
    "wrapped": (Wrapped, ("cls", *["register"] * 3)),
    "timm": (_timm("vit_tiny_patch16_224"), ("cls",)),
    "timm registers": (_timm("vit_tiny_patch16_224", reg_tokens=3), ("cls", *["register"] * 3)),
    "timm registers only": (
        _timm("vit_tiny_patch16_224", reg_tokens=5, class_token=False, global_pool="avg"),
        ("register",) * 5,
    ),
    "timm bare": (_timm("vit_tiny_patch16_224", class_token=False, global_pool="avg"), ()),
    "timm distilled": (_timm("deit_tiny_distilled_patch16_224"), ("cls", "distill")),
    "timm eva02": (_timm("eva02_tiny_patch14_224", num_reg_tokens=3), ("cls", *["register"] * 3)),
    "timm beit": (_timm("beit_base_patch16_224"), ("cls",)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_patch_moves_the_token_that_bears_its_place(family: str) -> None:
    build, prefix = FAMILIES[family]
    model = load(build())
    pixels = torch.zeros(2, 3, HEIGHT, WIDTH)
    row, col = 1, 3
    pixels[1, :, row * PATCH : (row + 1) * PATCH, col * PATCH : (col + 1) * PATCH] = 1.0
    batch = next(make_inputs(model, pixels).batches())
    layout = batch.layouts[0]
    assert layout is not None and layout.roles == prefix + ("patch",) * 15
    states = token_states(model.module, batch.args, batch.kwargs, len(layout))
    moved = (states[0] != states[1]).any(dim=-1).nonzero().flatten().tolist()
    assert [(layout.rows[token], layout.cols[token]) for token in moved] == [(row, col)]


@pytest.mark.parametrize("family", [name for name, (_, prefix) in FAMILIES.items() if prefix])
def test_prefix_roles_are_where_the_learned_tokens_are(family: str) -> None:
    module = FAMILIES[family][0]()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            for role, names in EMBEDDED.items():
                if name.split(".")[-1] in names:
                    parameter.fill_(MARKS[role])
    batch = next(make_inputs(load(module), torch.zeros(1, 3, HEIGHT, WIDTH)).batches())
    layout = batch.layouts[0]
    assert layout is not None
    means = token_states(module, batch.args, batch.kwargs, len(layout))[0].mean(dim=-1)
    assert [round(value) for value in means.tolist()] == [MARKS.get(role, 0.0) for role in layout.roles]


def test_open_clip_and_torchvision_are_square_with_a_class_token(tiny_clip: str) -> None:
    towers = [
        load(f"open_clip:{tiny_clip}?pretrained=false").module,
        VisionTransformer(image_size=28, patch_size=7, num_layers=1, num_heads=2, hidden_dim=24, mlp_dim=37),
    ]
    for tower in towers:
        assert vision_tokens(tower) == VisionTokens(("cls",), (7, 7), 3, fixed=(28, 28))


@pytest.mark.parametrize("family", ["mae", "yolos", "swin"])
def test_unknown_orders_have_no_roles(family: str) -> None:
    tokens = vision_tokens(HF[family]())
    assert tokens is not None and tokens.prefix is None
    assert tokens.layout(28, 28) is None


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "naflexvit_base_patch16_gap", "convnext_atto"])
def test_timm_models_of_another_kind_have_no_roles(name: str) -> None:
    tokens = vision_tokens(timm.create_model(name, pretrained=False))
    assert tokens is None or tokens.prefix is None


def test_a_module_without_a_known_embedding_has_no_tokens() -> None:
    assert vision_tokens(nn.Sequential(nn.Conv2d(3, 24, 7, 7), nn.Linear(24, 24))) is None


@pytest.mark.parametrize(
    ("tokens", "height", "width", "message"),
    [
        (VisionTokens((), (7, 7), 3), 28, 30, "a multiple of the patch, 7 x 7 pixels"),
        (VisionTokens((), (7, 7), 3), 5, 28, "at least one patch of 7 x 7"),
        (VisionTokens((), (7, 7), 3, fixed=(28, 28)), 35, 35, "28 x 28, the only size this model takes"),
    ],
)
def test_pictures_the_model_cannot_take(tokens: VisionTokens, height: int, width: int, message: str) -> None:
    with pytest.raises(InputError, match=f"{height} x {width} pixels") as caught:
        tokens.check(height, width)
    assert caught.value.expected.startswith(message)


def test_a_model_that_pads_itself_takes_any_size() -> None:
    tokens = VisionTokens(("cls",), (7, 7), 3, padded=True)
    tokens.check(30, 36)
    layout = tokens.layout(30, 36)
    assert layout is not None and (layout.rows[-1], layout.cols[-1]) == (4, 5)
