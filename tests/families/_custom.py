"""Attention as people write it themselves. Reference: the definition in plain matrices, in the float64 copy."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tests._reference import ReferenceLayer
from tests.families._family import MAIN, Example, Family, Site, noise, observe, padded_mask, randomised

HOW = "softmax(q k^T / sqrt(d) + mask) written out in float64"
WIDTH, HEADS, TOKENS = 24, 3, 19


class HandAttention(nn.Module):
    """Self-attention in one of several hands.

    - `form`: `imported` (the function, not the attribute), `plain` (matrices and a softmax module), `wide-values`
        (values wider than keys, which no fused kernel takes).
    - `mask`: None, `square` (tokens x tokens, causal), `keys` (batch x 1 x 1 x tokens, padding), `queries` (batch x 1
        x tokens x 1: some queries see nothing).
    """

    def __init__(self, form: str, mask: str | None, kv_heads: int) -> None:
        super().__init__()
        self.form, self.mask, self.kv_heads = form, mask, kv_heads
        self.dim, self.value_dim = WIDTH // HEADS, 11 if form == "wide-values" else WIDTH // HEADS
        self.to_q = nn.Linear(WIDTH, HEADS * self.dim)
        self.to_k = nn.Linear(WIDTH, kv_heads * self.dim)
        self.to_v = nn.Linear(WIDTH, kv_heads * self.value_dim)
        self.attend = nn.Softmax(dim=-1)
        self.to_out = nn.Linear(HEADS * self.value_dim, WIDTH)

    def bias(self, padding: Tensor | None) -> Tensor | None:
        """True where the query sees the key, in the shape a caller would hand over."""
        if self.mask == "square":
            return torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
        if self.mask == "keys":
            assert padding is not None
            return ~padding[:, None, None, :]
        if self.mask == "queries":
            assert padding is not None
            return ~padding[:, None, :, None]
        return None

    def weights(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """The definition."""
        q = self.to_q(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k = self.to_k(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        scores = q @ k.repeat_interleave(HEADS // self.kv_heads, 1).mT / self.dim**0.5
        visible = self.bias(padding)
        if visible is not None:
            scores = scores.masked_fill(~visible, -torch.inf)
        return torch.softmax(scores, -1).nan_to_num(0.0)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        q = q.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        k, v = (t.unflatten(-1, (self.kv_heads, -1)).transpose(1, 2) for t in (k, v))
        if self.form == "plain":
            out = torch.matmul(self.attend(torch.matmul(q, k.transpose(-1, -2)) * self.dim**-0.5), v)
        else:
            grouped = {"enable_gqa": True} if self.kv_heads != HEADS else {}
            out = scaled_dot_product_attention(q, k, v, attn_mask=self.bias(padding), **grouped)
        made: Tensor = self.to_out(out.transpose(1, 2).flatten(2))
        return made


class HandBlock(nn.Module):
    """A residual block with a layer scale as the last step of its branch."""

    def __init__(self, form: str, mask: str | None = None, kv_heads: int = HEADS) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = HandAttention(form, mask, kv_heads)
        self.gamma = nn.Parameter(torch.ones(WIDTH))
        self.mlp = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 29), nn.GELU(), nn.Linear(29, WIDTH))

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        x = x + self.gamma * self.attention(self.norm(x), padding)
        y: Tensor = x + self.mlp(x)
        return y


class HandModel(nn.Module):
    """Two blocks."""

    def __init__(self, *args: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(HandBlock(*args) for _ in range(2))

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, padding)
        return x


def _build(*args: Any) -> nn.Module:
    return randomised(HandModel(*args))


def _example(mask: str | None, batch: int) -> Example:
    valid = torch.ones(batch, TOKENS, dtype=torch.bool)
    x = noise(batch, TOKENS, WIDTH)
    if mask not in ("keys", "queries"):
        return Example((x,), valid={MAIN: valid})
    padding = ~padded_mask(batch, TOKENS, "right").bool()
    return Example((x, padding), valid={MAIN: ~padding if mask == "keys" else valid})


def _weights(module: nn.Module, args: tuple[Any, ...], _kwargs: Any, _output: Any) -> Tensor:
    assert isinstance(module, HandAttention)
    return module.weights(*args)


def _layers(mask: str | None, model: nn.Module, example: Example) -> list[ReferenceLayer]:
    site = Site(
        block="blocks.{}",
        attention="attention",
        projection="attention.to_out.weight",
        value="attention.to_v",
        heads=HEADS,
        weights=_weights,
        layer_scale="gamma",
        causal=mask == "square",
    )
    layers = observe(model, example, [site.of_layer(i) for i in range(2)])
    if mask == "queries":  # a query that sees nothing
        layers = [replace(layer, visible=layer.visible & ~example.args[1][:, :, None]) for layer in layers]
    return layers


def _family(name: str, form: str, mask: str | None = None, kv_heads: int = HEADS, route: str = "fused") -> Family:
    return Family(
        name,
        HOW,
        partial(_build, form, mask, kv_heads),
        partial(_example, mask),
        partial(_layers, mask),
        ("self", "self"),
        route,
    )


CUSTOM = (
    _family("hand-imported", "imported"),
    _family("hand-square-mask", "imported", mask="square"),
    _family("hand-square-mask-mqa", "imported", mask="square", kv_heads=1),
    _family("hand-key-mask", "imported", mask="keys"),
    _family("hand-query-mask", "imported", mask="queries"),
    _family("hand-plain", "plain", route="weights"),
    _family("hand-wide-values", "wide-values", mask="keys", route="weights"),
)
