"""Vision transformers of transformers. Reference: the float64 copy with eager attention, whose attention modules hand
out their weights; values by the value layer applied to what a plain hook sees go in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests._reference import ReferenceLayer
from tests.families._family import MAIN, Example, Family, Site, noise, observe, randomised

HOW = "transformers' eager attention in float64: returned weights, value layer by hook"
HEADS, HIDDEN, LAYERS, PATCH, SIDE = 3, 21, 2, 5, 20
PATCHES = (SIDE // PATCH) ** 2
_SMALL: dict[str, Any] = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": 29}


def eager(model: nn.Module) -> nn.Module:
    """The model with its own eager attention."""
    model.set_attn_implementation("eager")  # type: ignore[operator]
    return model


def returned(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Tensor:
    """The weights that transformers' attention modules return in eager mode."""
    weights: Tensor = output[-1]
    return weights


def _site(block: str, attention: str = "attention", output: str = "o_proj", scale: str | None = None) -> Site:
    return Site(
        block=block,
        attention=attention,
        value=f"{attention}.v_proj",
        projection=f"{attention}.{output}.weight",
        heads=HEADS,
        weights=returned,
        layer_scale=scale,
    )


def _family(
    name: str,
    class_name: str,
    tokens: int,
    site: Site,
    extra: dict[str, Any],
    kinds: tuple[str, ...] = ("self",) * LAYERS,
) -> Family:
    def build() -> nn.Module:
        import transformers

        hidden = extra.get("hidden_size", HIDDEN)
        config_class = getattr(transformers, class_name.removesuffix("Model") + "Config")
        options = {"image_size": SIDE, "patch_size": PATCH, "hidden_size": hidden, **_SMALL, **extra}
        model: nn.Module = getattr(transformers, class_name)(config_class(**options))
        return randomised(model)

    def example(batch: int) -> Example:
        pictures = noise(batch, 3, SIDE, SIDE)
        return Example((pictures,), valid={MAIN: torch.ones(batch, tokens, dtype=torch.bool)})

    def layers(model: nn.Module, example: Example) -> list[ReferenceLayer]:
        sites = [site.of_layer(i) for i in range(LAYERS)]
        return observe(eager(model), example, sites)

    return Family(name, HOW, build, example, layers, kinds)


HF_VISION = (
    _family("vit", "ViTModel", PATCHES + 1, _site("layers.{}"), {}),
    _family(
        "dinov2", "Dinov2Model", PATCHES + 1, _site("encoder.layer.{}", scale="layer_scale1.lambda1"), {"mlp_ratio": 1}
    ),
    _family(
        "dinov2-registers",
        "Dinov2WithRegistersModel",
        PATCHES + 4,
        _site("encoder.layer.{}", scale="layer_scale1.lambda1"),
        {"num_register_tokens": 3, "mlp_ratio": 1},
    ),
    _family(
        "dinov3",
        "DINOv3ViTModel",
        PATCHES + 3,
        _site("model.layer.{}", scale="layer_scale1.lambda1"),
        {"num_register_tokens": 2, "hidden_size": 24},
    ),
    _family("clip-vision", "CLIPVisionModel", PATCHES + 1, _site("encoder.layers.{}", "self_attn", "out_proj"), {}),
    _family(
        "siglip-vision",
        "SiglipVisionModel",
        PATCHES,
        _site("encoder.layers.{}", "self_attn", "out_proj"),
        {},
        kinds=("self", "self", "cross"),
    ),
)
