"""Attention of another form with some keys taken out of it, or with some of its heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from sinkscope.attention import Attend, Card, Form, Parameters, Softmax
from sinkscope.capture import RowSums

How = Literal["mask", "redirect", "zero"]


@dataclass(frozen=True)
class Removed(Form):
    """Another form without what queries take from removed keys; every query keeps what it takes from its own key.

    Memory is linear in tokens where that of the form is and no mask tells queries apart: removed keys are a mask of the
    keys or zeros in the values, and rows of removed tokens, which are few, are computed once more.

    - `inner`: the form.
    - `how`: `mask`, the score is minus infinity; `zero`, the value is zero; `redirect`, the weight goes to the query's
      own key.
    - `most`: no head has more removed keys.
    """

    inner: Form = field(default_factory=Softmax)
    how: How = "mask"
    most: int = 1

    card: ClassVar[Card] = Card(
        name="removed",
        title="Removed sinks",
        definition="A of another form without its columns s",
        source="sinkscope",
        rows="any",
        computed="fused",
    )

    @property
    def needs(self) -> Mapping[str, str]:
        return {**self.inner.needs, "removed": "#batch #heads keys", "own": "#batch #heads queries"}

    @property
    def rows(self) -> RowSums:
        return "at most one" if self.how == "zero" and self.inner.rows == "one" else self.inner.rows

    def _attend(self, call: Attend) -> Float[Tensor, "batch heads queries value_dim"]:
        removed = call.parameters["removed"]
        if self.how == "mask":
            shown = ~removed[:, :, None]
            hidden = replace(call, mask=shown if call.mask is None else call.mask & shown)
            return self._with_own_rows(call, self.inner._attend(self._within(hidden)))
        call = self._of_every_head(call) if removed.shape[1] > 1 else call
        emptied = replace(call, v=call.v.masked_fill(removed[..., None], 0.0))
        if self.how == "zero":
            return self._with_own_values(call, self.inner._attend(self._within(emptied)))
        width = call.v.shape[-1]
        indicator = removed[..., None].to(call.v.dtype).expand(*call.v.shape[:3], 1)
        wide = replace(call, q=pad(call.q, (0, 1)), k=pad(call.k, (0, 1)), v=torch.cat([emptied.v, indicator], -1))
        out = self.inner._attend(self._within(wide))
        return out[..., :width] + out[..., width:] * _taken(_per_head(call.v, call), _own(call))

    def weights(self, call: Attend) -> Float[Tensor, "batch heads queries keys"]:
        gone = removed_keys(call)
        if self.how == "mask":
            hidden = replace(call, mask=call.visible() & ~gone, causal=False)
            return self.inner.weights(self._within(hidden))
        weights = self.inner.weights(self._within(call))
        left = weights.masked_fill(gone, 0.0)
        if self.how == "zero":
            return left
        return left + (weights * gone).sum(-1, keepdim=True) * _is_own(_own(call), call)

    def _within(self, call: Attend) -> Attend:
        return replace(call, parameters={name: call.parameters[name] for name in self.inner.needs})

    def _of_every_head(self, call: Attend) -> Attend:
        """Keys, values, and what else belongs to key-value heads, repeated for query heads."""
        if call.groups == 1:
            return call
        parameters = dict(call.parameters)
        for name, axes in self.inner.needs.items():
            if "kv_heads" in axes.split():
                parameters[name] = parameters[name].repeat_interleave(call.groups, axes.split().index("kv_heads"))
        return replace(call, k=_per_head(call.k, call), v=_per_head(call.v, call), parameters=parameters)

    def _rows_of_removed(self, call: Attend) -> tuple[Int[Tensor, "batch heads rows"], Attend]:
        """Queries whose own key is removed, and some others where there are fewer than `most`; the call of these alone,
        which sees what it saw before the removal."""
        shape = call.q.shape[:2]
        removed = call.parameters["removed"].expand(*shape, -1)
        count = min(self.most, call.q.shape[2])
        at = removed.gather(2, _own(call)).int().topk(count).indices
        mask = None if call.mask is None else call.mask.expand(*shape, -1, -1)
        if mask is not None and mask.shape[2] > 1:
            mask = _taken(mask, at)
        if call.causal:
            past = torch.arange(call.k.shape[2], device=at.device) <= at[..., None]
            mask = past if mask is None else mask & past
        parameters = dict(call.parameters)
        for name, axes in self.needs.items():
            names = [axis.removeprefix("#") for axis in axes.split()]
            if "queries" in names and parameters[name].shape[2] > 1:
                given = parameters[name].expand(*shape, *parameters[name].shape[2:])
                parameters[name] = given.gather(2, at) if given.dim() == 3 else _taken(given, at)
        rows = replace(call, q=_taken(call.q, at), mask=mask, causal=False, parameters=parameters)
        return at, rows

    def _with_own_rows(
        self, call: Attend, out: Float[Tensor, "batch heads queries value_dim"]
    ) -> Float[Tensor, "batch heads queries value_dim"]:
        """Rows of removed tokens see their own key."""
        at, rows = self._rows_of_removed(call)
        shown = ~rows.parameters["removed"][:, :, None] | _is_own(_own(rows), rows)
        rows = replace(rows, mask=shown if rows.mask is None else rows.mask & shown)
        found = self.inner._attend(self._within(rows))
        return out.scatter(2, at[..., None].expand(-1, -1, -1, out.shape[-1]), found.to(out.dtype))

    def _with_own_values(
        self, call: Attend, out: Float[Tensor, "batch heads queries value_dim"]
    ) -> Float[Tensor, "batch heads queries value_dim"]:
        """Rows of removed tokens take their own value."""
        at, rows = self._rows_of_removed(call)
        own = _own(rows)
        removed = rows.parameters["removed"].expand(*at.shape[:2], -1).gather(2, own)
        weight = self.inner.weights(self._within(rows)).gather(3, own[..., None]) * removed[..., None]
        taken = (weight * _taken(_per_head(call.v, call), own)).to(out.dtype)
        return out.scatter_add(2, at[..., None].expand(-1, -1, -1, out.shape[-1]), taken)


@dataclass(frozen=True)
class Silenced(Form):
    """Another form without some of its heads, which write nothing.

    - `inner`: the form.
    """

    inner: Form = field(default_factory=Softmax)

    card: ClassVar[Card] = Card(
        name="silenced",
        title="Removed heads",
        definition="0 in place of A of another form",
        source="sinkscope",
        rows="any",
        computed="fused",
    )

    @property
    def needs(self) -> Mapping[str, str]:
        return {**self.inner.needs, "kept": "heads"}

    @property
    def rows(self) -> RowSums:
        return "at most one" if self.inner.rows == "one" else self.inner.rows

    def _attend(self, call: Attend) -> Float[Tensor, "batch heads queries value_dim"]:
        out = self.inner._attend(self._within(call))
        return out.masked_fill(~call.parameters["kept"][:, None, None], 0.0)

    def weights(self, call: Attend) -> Float[Tensor, "batch heads queries keys"]:
        found = self.inner.weights(self._within(call))
        return found.masked_fill(~call.parameters["kept"][:, None, None], 0.0)

    def _within(self, call: Attend) -> Attend:
        return replace(call, parameters={name: call.parameters[name] for name in self.inner.needs})


def removed_keys(call: Attend) -> Bool[Tensor, "batch heads queries keys"]:
    """Which keys a query can no longer read: those that are removed and are not its own."""
    return call.parameters["removed"][:, :, None] & ~_is_own(_own(call), call)


def column_mass(
    form: Form, parameters: Parameters, call: Attend, queries: Bool[Tensor, "#batch queries"]
) -> Float[Tensor, "batch heads keys"]:
    """Sums of the weights on every key over these queries, a block of queries at a time."""
    whole = replace(call, parameters=parameters)
    batch, heads, count, _ = call.q.shape
    keys = call.k.shape[2]
    sums = torch.zeros(batch, heads, keys, dtype=call.dtype, device=call.q.device)
    step = max(1, _BLOCK // (batch * heads * keys))
    for part in torch.split(torch.arange(count, device=call.q.device), step):
        weights = form._rows_of(whole, part.expand(batch, -1))
        sums += (weights * queries[:, None, part, None]).sum(2)
    return sums


_BLOCK = 1 << 21


def _own(call: Attend) -> Int[Tensor, "batch heads queries"]:
    """The key of every query's own token."""
    return call.parameters["own"].expand(*call.q.shape[:2], call.q.shape[2])


def _is_own(own: Int[Tensor, "batch heads queries"], call: Attend) -> Bool[Tensor, "batch heads queries keys"]:
    return torch.arange(call.k.shape[2], device=own.device) == own[..., None]


def _taken(x: Tensor, at: Int[Tensor, "batch heads rows"]) -> Tensor:
    """Rows of (batch, heads, tokens, width), others for every head."""
    return x.gather(2, at[..., None].expand(-1, -1, -1, x.shape[-1]))


def _per_head(x: Float[Tensor, "batch kv_heads keys dim"], call: Attend) -> Float[Tensor, "batch heads keys dim"]:
    return x.repeat_interleave(call.q.shape[1] // x.shape[1], 1)
