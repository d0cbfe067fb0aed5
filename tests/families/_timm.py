"""timm's vision transformers. Reference: the float64 copy with `fused_attn = False`, whose weights pass through the
attention's dropout module, where a plain hook reads them; values from the qkv weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests._reference import ReferenceLayer
from tests.families._family import MAIN, Example, Family, Site, noise, observe, randomised

HOW = "timm's unfused attention in float64: weights by hook on its dropout, values from the qkv weights"
LAYERS, SIDE, PATCH = 2, 20, 5
PATCHES = (SIDE // PATCH) ** 2
VIT: dict[str, Any] = {
    "img_size": SIDE,
    "patch_size": PATCH,
    "embed_dim": 21,
    "depth": LAYERS,
    "num_heads": 3,
    "mlp_ratio": 1,
    "num_classes": 5,
}


def unfused(model: nn.Module) -> nn.Module:
    """The model with attention that forms its weights."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
    return model


def _fused_qkv(attention: nn.Module, args: tuple[Any, ...]) -> Tensor:
    made = args[0] @ attention.qkv.weight.mT  # type: ignore[union-attr]
    bias = attention.qkv.bias  # type: ignore[union-attr]
    values: Tensor = (made if bias is None else made + bias).chunk(3, -1)[2]
    extra = getattr(attention, "v_bias", None)
    return values if extra is None else values + extra


def _build(factory: str, options: dict[str, Any]) -> nn.Module:
    import timm

    if factory == "vit":
        from timm.models.vision_transformer import VisionTransformer

        gated = {"attn_layer": _gated_attention()} if options.get("attn_layer") == "gated" else {}
        return randomised(VisionTransformer(**{**options, **gated}))
    if factory == "eva":
        from timm.models.eva import Eva

        return randomised(Eva(**options))
    return randomised(timm.create_model(factory, pretrained=False, **options))


def _gated_attention() -> type[nn.Module]:
    from timm.layers.attention import Attention

    class GatedAttention(Attention):
        """timm's attention with its sigmoid gate on the output, before the projection."""

        def __init__(self, dim: int, num_heads: int, **options: Any) -> None:
            super().__init__(dim, num_heads, **{**options, "gated": True})

    return GatedAttention


def _example(tokens: int, batch: int) -> Example:
    return Example((noise(batch, 3, SIDE, SIDE),), valid={MAIN: torch.ones(batch, tokens, dtype=torch.bool)})


def _layers(sites: list[Site], model: nn.Module, example: Example) -> list[ReferenceLayer]:
    return observe(unfused(model), example, sites)


def _family(
    name: str,
    factory: str,
    prefix: int,
    options: dict[str, Any],
    scale: str | None = None,
    projection: str | None = "attn.proj.weight",
    kinds: tuple[str, ...] = ("self",) * LAYERS,
    value: Any = _fused_qkv,
    bitwise: bool = True,
) -> Family:
    site = Site(
        block="blocks.{}",
        attention="attn",
        projection=projection,
        value=value,
        heads=3,
        dropout="attn.attn_drop",
        layer_scale=scale,
    )
    sites = [site.of_layer(i) for i in range(LAYERS)]
    return Family(
        name,
        HOW,
        partial(_build, factory, options),
        partial(_example, PATCHES + prefix),
        partial(_layers, sites),
        kinds,
        bitwise=bitwise,
    )


_EVA: dict[str, Any] = {**VIT, "embed_dim": 24, "use_rot_pos_emb": True, "qkv_bias": True, "swiglu_mlp": True}

TIMM = (
    _family("timm-vit", "vit", 1, VIT),
    _family("timm-vit-reg", "vit", 4, {**VIT, "reg_tokens": 3, "init_values": 1.0}, scale="ls1.gamma"),
    _family(
        "timm-vit-map",
        "vit",
        0,
        {**VIT, "class_token": False, "global_pool": "map"},
        kinds=("self", "self", "cross"),
        bitwise=False,  # the linear layer on the pool's expanded query picks another matrix product
    ),
    _family("timm-vit-gated", "vit", 1, {**VIT, "attn_layer": "gated"}, projection=None),
    _family("timm-eva02", "eva", 1, _EVA),
    _family(
        "timm-eva02-subln",
        "eva",
        1,
        {**_EVA, "scale_attn_inner": True, "qkv_fused": False},
        projection=None,
        value="attn.v_proj",
    ),
    _family(
        "timm-deit-distilled",
        "deit_tiny_distilled_patch16_224",
        2,
        VIT,
    ),
)
