"""The weights of one attention head of a transformers model: found, read, and written."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .._errors import CaptureError, OptionError

_INPUTS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
_OUTPUTS = ("o_proj", "out_proj")
_SCALES = (("layer_scale1", "lambda1"),)


@dataclass(frozen=True)
class HeadWeights:
    """What one head computes with, in float64: q_i = `wq` x_i + `bq`, likewise k and v, and u_j = `wo` v_j.

    - `bq`, `bk`, `bv`: None where the model has no such bias.
    - `wo`: the head's columns of the output projection, times the LayerScale vector where there is one.
    - `scale`: factor of the scores.
    """

    wq: Float[Tensor, "head_dim residual"]
    wk: Float[Tensor, "head_dim residual"]
    wv: Float[Tensor, "head_dim residual"]
    wo: Float[Tensor, "residual head_dim"]
    bq: Float[Tensor, " head_dim"] | None
    bk: Float[Tensor, " head_dim"] | None
    bv: Float[Tensor, " head_dim"] | None
    scale: float

    @property
    def gram(self) -> Float[Tensor, "head_dim head_dim"]:
        """M with |u|^2 = v^T M v."""
        return self.wo.T @ self.wo


@dataclass(frozen=True)
class AttentionLayer:
    """The linear maps of one self-attention module. `layer_scale` multiplies what `out` gives."""

    module: nn.Module
    q: nn.Linear
    k: nn.Linear
    v: nn.Linear
    out: nn.Linear
    layer_scale: Tensor | None
    heads: int

    @property
    def head_dim(self) -> int:
        """Dimensions of a head."""
        return self.q.out_features // self.heads

    def read(self, head: int) -> HeadWeights:
        """A copy of the weights of a head."""
        rows = slice(head * self.head_dim, (head + 1) * self.head_dim)
        wo = self.out.weight.detach().double()[:, rows]
        if self.layer_scale is not None:
            wo = wo * self.layer_scale.detach().double()[:, None]
        weights = [part.weight.detach().double()[rows].clone() for part in (self.q, self.k, self.v)]
        parts: tuple[Any, ...] = (self.q, self.k, self.v)  # torch declares a bias that may be None as always there
        biases = [None if part.bias is None else part.bias.detach().double()[rows].clone() for part in parts]
        scale = getattr(self.module, "scaling", self.head_dim**-0.5)
        return HeadWeights(weights[0], weights[1], weights[2], wo.clone(), biases[0], biases[1], biases[2], scale)

    @torch.no_grad()
    def write(self, head: int, weights: HeadWeights) -> None:
        """Put weights in the head's place."""
        rows = slice(head * self.head_dim, (head + 1) * self.head_dim)
        for part, weight, bias in (
            (self.q, weights.wq, weights.bq),
            (self.k, weights.wk, weights.bk),
            (self.v, weights.wv, weights.bv),
        ):
            part.weight[rows] = weight.to(part.weight)
            if bias is not None:
                part.bias[rows] = bias.to(part.bias)
        scale = 1.0 if self.layer_scale is None else self.layer_scale.detach().double()[:, None]
        self.out.weight[:, rows] = (weights.wo / scale).to(self.out.weight)


def attention_layers(module: nn.Module) -> list[AttentionLayer]:
    """The self-attention layers of a transformers model, in order, numbered as a diagnosis numbers them.

    **Raises:** `CaptureError` where there is none whose queries, keys and values are linear maps of their own.
    """
    config: Any = getattr(module, "config", None)
    found = list(_layers(module, config))
    if not found or getattr(config, "is_encoder_decoder", False):
        raise CaptureError(
            f"{type(module).__name__}, in which no head can be planted",
            "a transformers encoder or decoder whose attention has linear maps of its own for queries, keys and values",
            "plant in a DINOv2, ViT, BERT or Llama",
        )
    return found


def _layers(root: nn.Module, config: Any) -> Iterator[AttentionLayer]:
    modules: dict[str, Any] = dict(root.named_modules())
    for name, module in modules.items():
        for names in _INPUTS:
            q, k, v = (getattr(module, part, None) for part in names)
            if not (isinstance(q, nn.Linear) and isinstance(k, nn.Linear) and isinstance(v, nn.Linear)):
                continue
            parent = modules[name.rpartition(".")[0]]
            dense = getattr(getattr(parent, "output", None), "dense", None)
            out = next((getattr(module, part) for part in _OUTPUTS if hasattr(module, part)), dense)
            if isinstance(out, nn.Linear) and config is not None:
                yield AttentionLayer(module, q, k, v, out, _layer_scale(parent), int(config.num_attention_heads))


def _layer_scale(block: Any) -> Tensor | None:
    for part, parameter in _SCALES:
        scale = getattr(getattr(block, part, None), parameter, None)
        if isinstance(scale, Tensor):
            return scale
    return None


def ungrouped_copy(module: nn.Module) -> nn.Module:
    """A copy in which every query head has keys and values of its own; it computes the same function.

    Where query heads share a key-value head (grouped-query attention), its rows of W_K and W_V are repeated once per
    query head, in every layer, and the configuration says so; a head planted afterwards is nobody else's.
    """
    copied = copy.deepcopy(module)
    config: Any = copied.config
    groups = getattr(config, "num_key_value_heads", None)
    if groups is None or groups == config.num_attention_heads:
        return copied
    for layer in _layers(copied, config):
        for name, part in (("k_proj", layer.k), ("v_proj", layer.v)):
            setattr(layer.module, name, _repeated(part, groups, layer.heads // groups))
        layer.module.num_key_value_groups = 1  # type: ignore[assignment]  # a module attribute that is no module
    config.num_key_value_heads = config.num_attention_heads
    return copied


@torch.no_grad()
def _repeated(part: nn.Linear, groups: int, times: int) -> nn.Linear:
    def repeat(rows: Tensor) -> nn.Parameter:
        shaped = rows.reshape(groups, 1, -1, *rows.shape[1:])
        return nn.Parameter(shaped.expand(-1, times, *shaped.shape[2:]).reshape(-1, *rows.shape[1:]).clone())

    wide = nn.Linear(1, 1, bias=part.bias is not None, device=part.weight.device, dtype=part.weight.dtype)
    wide.in_features, wide.out_features = part.in_features, part.out_features * times
    wide.weight = repeat(part.weight)
    if part.bias is not None:
        wide.bias = repeat(part.bias)
    return wide.train(part.training).requires_grad_(part.weight.requires_grad)


def chosen_layer(module: nn.Module, layer: int, head: int) -> AttentionLayer:
    """The layer of a head. **Raises:** `OptionError` where there is no such head."""
    layers = attention_layers(module)
    if not (0 <= layer < len(layers) and 0 <= head < layers[layer].heads):
        raise OptionError(
            f"head {layer}.{head}",
            f"layers 0 to {len(layers) - 1}, heads 0 to {layers[0].heads - 1}",
            "choose another head",
        )
    return layers[layer]


def norm_gains(module: nn.Module) -> list[Float[Tensor, " residual"]] | None:
    """Weights of a network's RMSNorms over the residual stream, in float64; None for one with LayerNorms."""
    if any(isinstance(part, nn.LayerNorm) for part in module.modules()):
        return None
    width = attention_layers(module)[0].q.in_features
    named = ((name, p.detach().double().cpu()) for name, p in module.named_parameters())
    return [gain for name, gain in named if name.endswith("norm.weight") and gain.shape == (width,)]
