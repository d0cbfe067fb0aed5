"""Random attention calls: shapes, groups, masks of every broadcast shape, causal or not, paddings, virtual keys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from hypothesis import strategies as st
from torch import Tensor

from sinkscope.capture import AttentionCall
from tests.measure._calls import fused_call

HIDING = (-torch.inf, float(torch.finfo(torch.float32).min), -1e4)
"""What models add to the scores of a hidden key."""


@dataclass(frozen=True)
class Case:
    """What a call is made from; the call itself is made in the test.

    - `mask`: which of the axes batch, heads, queries the mask has, or None without one.
    - `shown`, `kept`: probability that the mask shows a key, and that a token is no padding.
    - `extra`: virtual keys.
    """

    batch: int
    kv_heads: int
    groups: int
    tokens: int
    dim: int
    mask: tuple[bool, bool, bool] | None
    shown: float
    hiding: float
    kept: float
    causal: bool
    extra: int
    scale: float
    seed: int

    @cached_property
    def valid(self) -> Tensor:
        """Tokens that are no padding: at least one."""
        valid = torch.rand(self.batch, self.tokens, generator=self._generator) < self.kept
        valid[:, 0] |= ~valid.any(1)
        return valid

    @cached_property
    def call(self) -> AttentionCall:
        """In float32."""
        return self.call_in(torch.float32)

    def call_in(self, dtype: torch.dtype) -> AttentionCall:
        """The numbers are the same in every type but for their rounding."""
        generator, heads, keys = self._generator, self.kv_heads * self.groups, self.tokens + self.extra

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        mask = None
        if self.mask is not None:
            axes = zip(self.mask, (self.batch, heads, self.tokens), strict=True)
            shape = [length if there else 1 for there, length in axes]
            shown = torch.rand(*shape, self.tokens, generator=generator) < self.shown
            bias = torch.randn(shown.shape, generator=generator)  # a learned bias where the key is shown
            mask = torch.cat([torch.where(shown, bias, self.hiding), torch.zeros(*shape, self.extra)], -1)
        call = fused_call(
            normal(self.batch, heads, self.tokens, self.dim),
            normal(self.batch, self.kv_heads, keys, self.dim),
            normal(self.batch, self.kv_heads, keys, self.dim),
            mask=mask,
            causal=self.causal and not self.extra,
            scale=self.scale,
        )
        call.virtual_keys = self.extra
        return call

    @property
    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


def cases() -> st.SearchStrategy[Case]:
    """Cases of up to 37 tokens."""
    return st.builds(
        Case,
        batch=st.integers(1, 3),
        kv_heads=st.integers(1, 3),
        groups=st.integers(1, 3),
        tokens=st.integers(1, 37),
        dim=st.sampled_from([1, 2, 3, 5, 8, 13, 17]),
        mask=st.none() | st.tuples(st.booleans(), st.booleans(), st.booleans()),
        shown=st.sampled_from([0.2, 0.7, 0.95]),
        hiding=st.sampled_from(HIDING),
        kept=st.sampled_from([0.5, 0.9, 1.1]),
        causal=st.booleans(),
        extra=st.integers(0, 2),
        scale=st.sampled_from([0.3, 1.0, 2.5]),
        seed=st.integers(0, 2**31),
    )
