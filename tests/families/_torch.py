"""PyTorch's own attention modules. Reference: the float64 copy asked for its weights per head with the very arguments
it is called with; values from its packed weights."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests._reference import ReferenceLayer, visible_keys
from tests.families._family import MAIN, Example, Family, Site, noise, observe, padded_mask, randomised
from tests.families._open_clip import HOW, asked_weights, packed_values

WIDTH, HEADS, TOKENS = 21, 3, 17


class SelfAttention(nn.Module):
    """nn.MultiheadAttention on one sequence, batch first outside."""

    def __init__(self, need_weights: bool = False, batch_first: bool = True, **options: bool) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, **options)
        self.need_weights = need_weights

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        x = x if self.attn.batch_first else x.transpose(0, 1)
        y: Tensor = self.attn(x, x, x, key_padding_mask=padding, need_weights=self.need_weights)[0]
        return y if self.attn.batch_first else y.transpose(0, 1)


def _attention(**options: bool) -> nn.Module:
    return randomised(SelfAttention(**options))


def _encoder(norm_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 29, batch_first=True, norm_first=norm_first)
    with warnings.catch_warnings():  # an odd number of heads rules the nested tensor out, not the fast path
        warnings.simplefilter("ignore", UserWarning)
        return randomised(nn.TransformerEncoder(layer, 2))


def _example(batch: int) -> Example:
    return Example((noise(batch, TOKENS, WIDTH),), valid={MAIN: torch.ones(batch, TOKENS, dtype=torch.bool)})


def _padded(keyword: str, batch: int) -> Example:
    valid = padded_mask(batch, TOKENS, "right").bool()
    return Example((noise(batch, TOKENS, WIDTH),), {keyword: ~valid}, {MAIN: valid})


def _attention_layers(model: nn.Module, example: Example) -> list[ReferenceLayer]:
    """Also of modules with virtual keys, which observe() knows nothing of: the learned one, then the zero one."""
    assert isinstance(model, SelfAttention)
    attention, x = model.attn, example.args[0]
    inputs = x if attention.batch_first else x.transpose(0, 1)
    keywords = {"key_padding_mask": example.kwargs.get("padding")}
    weights = asked_weights(attention, (inputs, inputs, inputs), keywords, None)
    values = packed_values(attention, (x,)).reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)
    if attention.bias_v is not None:
        learned = attention.bias_v.reshape(1, HEADS, 1, -1).expand(len(x), -1, -1, -1)
        values = torch.cat([values, learned], 2)
    if attention.add_zero_attn:
        values = torch.cat([values, torch.zeros_like(values[:, :, :1])], 2)
    valid = example.valid[MAIN]
    projection = attention.out_proj.weight
    return [ReferenceLayer(weights, values.detach(), visible_keys(valid), valid, projection.detach(), None, x)]


def _encoder_layers(model: nn.Module, example: Example) -> list[ReferenceLayer]:
    site = Site("layers.{}", "self_attn", "self_attn.out_proj.weight", packed_values, HEADS, asked_weights)
    return observe(model, example, [site.of_layer(0), site.of_layer(1)])


def _family(name: str, route: str = "fused", padding: bool = False, **options: Any) -> Family:
    example = partial(_padded, "padding") if padding else _example
    return Family(
        name, HOW, partial(_attention, **options), example, _attention_layers, ("self",), route, bitwise=False
    )


def _encoder_family(name: str, norm_first: bool) -> Family:
    example = partial(_padded, "src_key_padding_mask")
    return Family(name, HOW, partial(_encoder, norm_first), example, _encoder_layers, ("self", "self"), bitwise=False)


TORCH = (
    _family("mha"),
    _family("mha-padding", padding=True),
    _family("mha-sequence-first", batch_first=False),
    _family("mha-weights", route="weights", need_weights=True),
    _family("mha-weights-padding", route="weights", padding=True, need_weights=True),
    _family("mha-zero", add_zero_attn=True),
    _family("mha-zero-weights", route="weights", add_zero_attn=True, need_weights=True, padding=True),
    _family("mha-bias-kv", add_bias_kv=True),
    _family("mha-bias-kv-zero", add_bias_kv=True, add_zero_attn=True, padding=True),
    _encoder_family("encoder", norm_first=False),
    _encoder_family("encoder-norm-first", norm_first=True),
)
