"""One head of one row of a captured call: its weights, block by block, and what it writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinkscope.capture import HIDDEN_BIAS, AttentionCall

_BLOCK_ELEMENTS = 1 << 21


@dataclass(frozen=True)
class Head:
    """Query head `head` of row `row` of a call."""

    call: AttentionCall
    row: int
    head: int

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: float32, or float64 where the model is."""
        return torch.promote_types(self.call.v.dtype, torch.float32)

    @property
    def values(self) -> Float[Tensor, "keys value_dim"]:
        """The head's values in the model's dtype, keys that are no tokens last; a view."""
        return self.call.v[self.row, self._kv(self.call.v)]

    @property
    def out(self) -> Float[Tensor, "queries value_dim"]:
        """The head's output; a view, so that changing it is an edit."""
        return self.call.out[self.row, self.head]

    def weights(self, dtype: torch.dtype) -> Iterator[tuple[slice, Float[Tensor, "rows keys"]]]:
        """Blocks of queries with their weights on every key, those that are no tokens included, as the model uses them:
        they need not sum to one. The column of a learned sink logit is left out, it has no value."""
        call, queries, keys = self.call, self.call.shape[2], self.call.shape[3]
        if call.weights is not None:
            yield slice(0, queries), call.weights[self.row, self.head].to(dtype)
            return
        step = max(1, _BLOCK_ELEMENTS // (keys if call.form is None else keys * call.shape[0] * call.shape[1]))
        for start in range(0, queries, step):
            block = slice(start, min(start + step, queries))
            yield block, self._computed(block, dtype)

    def sees(self, key: int) -> Bool[Tensor, " queries"]:
        """Which queries may see a key."""
        call = self.call
        positions = torch.arange(call.shape[2], device=call.out.device)
        shown = positions >= key if call.causal else torch.ones_like(positions, dtype=torch.bool)
        if call.visible is not None:
            shown = shown & call.visible[self.row, 0, :, key]
        if call.mask is not None:
            shown = shown & (self._mask(call.mask)[:, key] > HIDDEN_BIAS)
        return shown

    def _computed(self, block: slice, dtype: torch.dtype) -> Tensor:
        call = self.call
        positions = torch.arange(block.start, block.stop, device=call.out.device)
        if call.form is not None:
            return call.form.weights(positions.expand(call.shape[0], -1))[self.row, self.head].to(dtype)
        assert call.q is not None and call.k is not None
        q, k = call.q[self.row, self.head, block].to(dtype), call.k[self.row, self._kv(call.k)].to(dtype)
        scores = q @ k.mT * call.scale
        if call.mask is not None:
            mask = self._mask(call.mask)
            scores += (mask if len(mask) == 1 else mask[block]).to(dtype)
        if call.causal:
            scores.masked_fill_(torch.arange(len(k), device=k.device) > positions[:, None], -torch.inf)
        return scores.softmax(-1).nan_to_num(0.0)  # a query that sees no key writes nothing

    def _kv(self, per_kv_head: Tensor) -> int:
        return self.head // (self.call.shape[1] // per_kv_head.shape[1])

    def _mask(self, mask: Tensor) -> Tensor:
        """(queries or 1, keys)"""
        return mask[self.row if len(mask) > 1 else 0, self.head if mask.shape[1] > 1 else 0]
