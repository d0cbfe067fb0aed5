"""Calls made by hand, as capture would hand them over, and the reference of a call."""

from __future__ import annotations

import torch
from torch import Tensor

from sinkscope.capture import HIDDEN_BIAS, AttentionCall, Projection
from tests._reference import ReferenceLayer


def fused_call(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    projection: Projection | None = None,
) -> AttentionCall:
    """A call of the fused route; the log-normaliser is that of the inputs in float64, rounded to at least float32."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    call = AttentionCall(
        layer=0, forward=0, module="m", block="m", kind="self", route="fused",
        q=q, k=k, v=v, out=q, mask=mask, causal=causal, scale=scale, projection=projection,
    )  # fmt: skip
    scores = logits(call)
    call.lse = scores.logsumexp(-1).to(torch.promote_types(q.dtype, torch.float32))
    call.out = (weights(call) @ expanded(v, q.shape[1])).to(q.dtype)
    return call


def weights_call(weights: Tensor, v: Tensor, visible: Tensor | None = None, extra: int = 0) -> AttentionCall:
    """A call of the weights route."""
    return AttentionCall(
        layer=0, forward=0, module="m", block="m", kind="self", route="weights",
        v=v, out=(weights.double() @ v.double()).to(v.dtype), weights=weights, visible=visible, extra_columns=extra,
    )  # fmt: skip


def logits(call: AttentionCall) -> Tensor:
    """Scores in float64, hidden keys at minus infinity."""
    assert call.q is not None and call.k is not None
    scores = call.q.double() @ expanded(call.k, call.q.shape[1]).mT * call.scale
    if call.mask is not None:
        scores = (scores + call.mask.double()).masked_fill(call.mask <= HIDDEN_BIAS, -torch.inf)
    if call.causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return scores


def weights(call: AttentionCall) -> Tensor:
    """The weights in float64; a query that sees no key has none."""
    return logits(call).softmax(-1).nan_to_num(0.0)


def expanded(x: Tensor, heads: int) -> Tensor:
    """Keys or values per query head, in float64."""
    return x.double().repeat_interleave(heads // x.shape[1], 1)


def reference_of(call: AttentionCall, valid: Tensor, normaliser: bool = False) -> ReferenceLayer:
    """The reference from the call's own tensors in float64; with `normaliser` from the call's log-normaliser too."""
    n = valid.shape[1]
    if call.weights is not None:
        exact = call.weights.double()
        visible = torch.ones(len(valid), n, n, dtype=torch.bool) if call.visible is None else call.visible[:, 0, :, :n]
    else:
        assert call.lse is not None
        scores = logits(call)
        visible = (scores > -torch.inf).any(1)[..., :n]
        exact = (scores - call.lse.double()[..., None]).exp().nan_to_num(0.0) if normaliser else weights(call)
    projection = call.projection
    return ReferenceLayer(
        weights=exact,
        values=expanded(call.v, call.shape[1]),
        visible=visible.expand(len(valid), n, n),
        valid=valid,
        projection=None if projection is None else projection.weight.double().mT,
        layer_scale=None if projection is None or projection.layer_scale is None else projection.layer_scale.double(),
        hidden=None,
    )
