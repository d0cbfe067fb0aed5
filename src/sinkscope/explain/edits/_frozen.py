"""Attention whose weights are those of another pass."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sinkscope.capture import AttentionCall

_BLOCK_ELEMENTS = 1 << 24


def freeze(call: AttentionCall, plain: AttentionCall, take: Int[Tensor, " rows"], size: int) -> None:
    """Make the output of `call` that of its own values under the weights of `plain`, in place.

    **Arguments:**

    - `take`: which of the `size` inputs of `plain` each row of `call` is.
    """
    take = take.to(call.out.device)
    windows = plain.shape[0] // size  # attention over parts of the input has several rows for one
    rows = (take[:, None] * windows + torch.arange(windows, device=take.device)).flatten()
    call.out.copy_(_mixed(plain, call.v, rows))


def _mixed(plain: AttentionCall, v: Tensor, rows: Tensor) -> Float[Tensor, "rows heads queries value_dim"]:
    if plain.route == "fused":
        assert plain.q is not None and plain.k is not None
        mask = plain.mask
        if mask is not None and len(mask) > 1:
            mask = mask[rows]
        if mask is not None and plain.causal:
            seen = torch.ones(plain.shape[2:], dtype=torch.bool, device=mask.device).tril()
            mask = mask.masked_fill(~seen, -torch.inf)
        q, k = plain.q[rows], plain.k[rows]
        return scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if mask is None else mask.to(q.dtype),
            is_causal=plain.causal and mask is None,
            scale=plain.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )
    values = v.repeat_interleave(plain.shape[1] // v.shape[1], 1)
    if plain.weights is not None:
        return plain.weights[rows].to(v.dtype) @ values
    assert plain.form is not None
    batch, heads, queries, keys = plain.shape
    at = torch.arange(queries, device=v.device).expand(batch, -1)
    blocks = torch.split(at, max(1, _BLOCK_ELEMENTS // (len(rows) * heads * keys)), 1)
    dtype = torch.promote_types(v.dtype, torch.float32)
    mixed = [plain.form.weights(block)[rows].to(dtype) @ values.to(dtype) for block in blocks]
    return torch.cat(mixed, 2).to(v.dtype)
