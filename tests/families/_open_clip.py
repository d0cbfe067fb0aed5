"""open_clip's towers. Reference: nn.MultiheadAttention of the float64 copy asked for its weights with the very
arguments it is called with; values from its packed weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests._reference import ReferenceLayer
from tests.families._family import MAIN, Example, Family, Site, noise, observe, randomised, token_ids

HOW = "nn.MultiheadAttention in float64 called again with need_weights=True; values from in_proj_weight"
LAYERS, TOKENS = 2, 23


def asked_weights(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> Tensor:
    """The weights per head of the same call, by PyTorch's own path that returns them."""
    arguments = {**dict(zip(("query", "key", "value"), args, strict=False)), **kwargs}
    arguments |= {"need_weights": True, "average_attn_weights": False}
    weights: Tensor = attention.forward(**arguments)[1]
    return weights


def packed_values(attention: nn.Module, args: tuple[Any, ...]) -> Tensor:
    """Values of nn.MultiheadAttention from its packed weights, batch first."""
    width = attention.embed_dim
    made: Tensor = args[-1] @ attention.in_proj_weight[2 * width :].mT + attention.in_proj_bias[2 * width :]  # type: ignore[index, operator]
    return made


class _Tower(nn.Module):
    """One tower of a CLIP as a module of its own."""

    def __init__(self, clip: nn.Module, tower: str) -> None:
        super().__init__()
        self.clip = clip
        self.tower = tower

    def forward(self, x: Tensor) -> Tensor:
        encoded: Tensor = getattr(self.clip, f"encode_{self.tower}")(x)
        return encoded


def _build(tower: str) -> nn.Module:
    from open_clip.model import CLIP

    vision = {
        "image_size": 20,
        "patch_size": 5,
        "width": 21,
        "layers": LAYERS,
        "head_width": 7,
        "mlp_ratio": 1,
        "ls_init_value": 1.0,
    }
    text = {"context_length": TOKENS, "vocab_size": 97, "width": 21, "heads": 3, "layers": LAYERS, "mlp_ratio": 1}
    return _Tower(randomised(CLIP(13, vision, text)), tower)


def _vision(batch: int) -> Example:
    return Example((noise(batch, 3, 20, 20),), valid={MAIN: torch.ones(batch, 17, dtype=torch.bool)})


def _text(batch: int) -> Example:
    return Example((token_ids(batch, TOKENS),), valid={MAIN: torch.ones(batch, TOKENS, dtype=torch.bool)})


def _layers(sites: list[Site], model: nn.Module, example: Example) -> list[ReferenceLayer]:
    return observe(model, example, sites)


def _family(name: str, tower: str, blocks: str, causal: bool, scale: str | None) -> Family:
    site = Site(
        block=blocks,
        attention="attn",
        projection="attn.out_proj.weight",
        value=packed_values,
        heads=3,
        weights=asked_weights,
        layer_scale=scale,
        causal=causal,
    )
    sites = [site.of_layer(i) for i in range(LAYERS)]
    example = _text if tower == "text" else _vision
    return Family(
        name, HOW, partial(_build, tower), example, partial(_layers, sites), ("self",) * LAYERS, bitwise=False
    )


OPEN_CLIP = (
    _family("open-clip-vision", "image", "clip.visual.transformer.resblocks.{}", causal=False, scale="ls_1.gamma"),
    _family("open-clip-text", "text", "clip.transformer.resblocks.{}", causal=True, scale=None),
)
