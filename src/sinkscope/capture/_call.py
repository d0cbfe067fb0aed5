"""One captured attention call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinkscope.capture._forms import FormCall, RowSums

HIDDEN_BIAS = -1e4
"""An additive mask at or below this hides the key: the softmax weight underflows to zero in every dtype."""


@dataclass(frozen=True)
class Projection:
    """The output projection W_O of an attention module, found by following the call's output.

    - `weight`: columns are residual dimensions; rows h*d_v .. (h+1)*d_v - 1 belong to head h.
    - `name`: the parameter's qualified name, None when the weight is no parameter of the captured module.
    - `layer_scale`: the vector g that multiplies the projected output, None where there is none.
    """

    weight: Float[Tensor, "heads_times_dim residual"]
    name: str | None
    layer_scale: Float[Tensor, " residual"] | None = None


@dataclass
class AttentionCall:
    """Queries, keys, values, weights or log-normalisers, and output of one attention operation of the model's forward.

    Tensors are the model's own, detached, in the model's dtype. `out` shares its memory with what the model goes on
    with, so that `on_call`, once the calls are settled, edits the head by changing `out` in place. `q`, `k` and `lse`
    belong to the fused route, `weights` to the route of models that form the matrix themselves, `form` (with `q` and
    `k`) to that of the attention forms of sinkscope.attention which no kernel shows; the other routes' fields are None.

    - `layer`: running number of the call among calls of the same `kind` in its forward pass, from 0.
    - `forward`: running number of the forward pass inside the capture, from 0.
    - `module`, `block`: qualified names of the attention module and of the residual block around it.
    - `kind`: `self`, `cross` (keys from another sequence or another length), or `decode` (keys from a cache).
    - `route`: `fused`, `weights` or `form`.
    - `mask`: additive mask of the fused route, broadcastable to (batch, heads, queries, keys), None without one.
    - `visible`: which keys the softmax of the `weights` route did not mask, None where all are visible.
    - `virtual_keys`: how many keys at the end are no tokens (zero or learned key-values).
    - `extra_columns`: how many columns the softmax of the `weights` route had beyond the keys (learned sink logits).
    - `causal`: query i sees keys 0..i, on top of `mask`.
    - `scale`: factor on q.k before the mask and the softmax.
    - `lse`: log of the softmax denominator per query (natural logarithm).
    - `block_input`: the first two sizes of the block's input, batch and tokens in either order; None when not seen.
    - `hidden_norms`: L2 norm of the block's input per token, before any norm.
    """

    layer: int
    forward: int
    module: str
    block: str
    kind: Literal["self", "cross", "decode"]
    route: Literal["fused", "weights", "form"]
    v: Float[Tensor, "batch kv_heads keys value_dim"]
    out: Float[Tensor, "batch heads queries value_dim"]
    q: Float[Tensor, "batch heads queries dim"] | None = None
    k: Float[Tensor, "batch kv_heads keys dim"] | None = None
    lse: Float[Tensor, "batch heads queries"] | None = None
    weights: Float[Tensor, "batch heads queries keys"] | None = None
    form: FormCall | None = None
    mask: Float[Tensor, "#batch #heads #queries keys"] | None = None
    visible: Bool[Tensor, "batch 1 queries keys"] | None = None
    virtual_keys: int = 0
    extra_columns: int = 0
    causal: bool = False
    scale: float = 1.0
    block_input: tuple[int, ...] | None = None
    hidden_norms: Float[Tensor, "batch tokens"] | None = None
    projection: Projection | None = None
    projection_gap: str | None = field(default="no projection followed the attention output")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(batch, heads, queries, keys)."""
        return self.out.shape[0], self.out.shape[1], self.out.shape[2], self.v.shape[2]

    @property
    def rows(self) -> RowSums:
        """What the weights of a query on the tokens sum to."""
        if self.form is not None:
            return self.form.rows
        return "at most one" if self.virtual_keys + self.extra_columns else "one"

    def attention_weights(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "batch heads queries keys"]:
        """The full matrix of weights, from its plain definition: quadratic memory, meant for small inputs and tests."""
        if self.weights is not None:
            return self.weights.to(dtype)
        if self.form is not None:
            return self.form.weights(torch.arange(self.shape[2], device=self.v.device).expand(self.shape[0], -1)).to(
                dtype
            )
        assert self.q is not None and self.k is not None
        groups = self.q.shape[1] // self.k.shape[1]
        scores = self.q.to(dtype) @ self.k.to(dtype).repeat_interleave(groups, 1).mT * self.scale
        if self.mask is not None:
            scores = scores + self.mask.to(dtype)
        if self.causal:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        return scores.softmax(-1).nan_to_num(0.0)  # a query that sees no key writes nothing
