"""Treated attention of timm: the same module, its class replaced. timm is loaded when a model of it is treated."""

from __future__ import annotations

from functools import cache
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from sinkscope.treat._container import CONTAINER


@cache
def treated_attention() -> type[nn.Module]:
    """timm's attention with a container; every weight and name stays where it was."""
    from timm.layers.attention import Attention

    return type("TreatedAttention", (Attention,), {"forward": _forward, "__module__": __name__})


def __getattr__(name: str) -> Any:
    if name == "TreatedAttention":  # where pickle looks for the class
        return treated_attention()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _forward(
    self: Any,
    x: Float[Tensor, "batch tokens residual"],
    attn_mask: Float[Tensor, "*shape"] | Bool[Tensor, "*shape"] | None = None,
    is_causal: bool = False,
) -> Float[Tensor, "batch tokens residual"]:
    batch, tokens, _ = x.shape
    qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    q, k = self.q_norm(q), self.k_norm(k)
    dropout = self.attn_drop.p if self.training else 0.0
    out, _ = getattr(self, CONTAINER).attend(x, q, k, v, attn_mask, is_causal, self.scale, dropout)
    out = self.norm(out.transpose(1, 2).reshape(batch, tokens, self.attn_dim))
    if self.gate is not None:
        out = out * self.gate(x).sigmoid()
    projected: Tensor = self.proj_drop(self.proj(out))
    return projected
