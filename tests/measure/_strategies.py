"""Random attention calls: shapes, groups, masks of every broadcast shape, causal or not, paddings, virtual keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from sinkscope.capture import AttentionCall
from tests.measure._calls import fused_call

HIDING = (-torch.inf, float(torch.finfo(torch.float32).min), -1e4)
"""What models add to the scores of a hidden key."""


@dataclass(frozen=True)
class Case:
    """A call, and its tokens that are no padding."""

    call: AttentionCall
    valid: Tensor

    def __repr__(self) -> str:
        mask = None if self.call.mask is None else tuple(self.call.mask.shape)
        kv_heads = self.call.v.shape[1]
        return f"Case({self.call.shape}, kv_heads={kv_heads}, mask={mask}, causal={self.call.causal})"


@st.composite
def cases(draw: st.DrawFn, dtype: torch.dtype = torch.float32, virtual: bool = True, most: int = 37) -> Case:
    """A case of up to `most` tokens."""
    batch, kv_heads, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    tokens, dim = draw(st.integers(1, most)), draw(st.sampled_from([1, 2, 3, 5, 8, 13, 17]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    extra = draw(st.integers(0, 2)) if virtual else 0
    causal = draw(st.booleans()) if not extra else False
    heads = kv_heads * groups

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    valid = torch.rand(batch, tokens, generator=generator) < draw(st.sampled_from([0.5, 0.9, 1.1]))
    valid[:, 0] |= ~valid.any(1)
    mask = None
    if draw(st.booleans()):
        shape = [axis if draw(st.booleans()) else 1 for axis in (batch, heads, tokens)]
        shown = torch.rand(*shape, tokens, generator=generator) < draw(st.sampled_from([0.2, 0.7, 0.95]))
        hidden = draw(st.sampled_from(HIDING))
        # a learned bias where the key is shown
        mask = torch.where(shown, torch.randn(shown.shape, generator=generator), hidden)
        mask = torch.cat([mask, torch.zeros(*shape, extra)], -1)
    call = fused_call(
        normal(batch, heads, tokens, dim),
        normal(batch, kv_heads, tokens + extra, dim),
        normal(batch, kv_heads, tokens + extra, dim),
        mask=mask,
        causal=causal,
        scale=draw(st.sampled_from([0.3, 1.0, 2.5])),
    )
    call.virtual_keys = extra
    return Case(call, valid)
