"""Learned keys and values in front of those of the tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sinkscope._errors import OptionError
from sinkscope.attention import Attend, Card, Form, Parameters
from sinkscope.attention._attend import by_group, by_head
from sinkscope.attention._blocks import by_blocks
from sinkscope.attention._fused import _bias, _blind, _flash, _flash_backward, has_kernel
from sinkscope.capture import capture
from sinkscope.models import Model
from sinkscope.treat._anatomy import Site, anatomy_of
from sinkscope.treat._column import ColumnPart, ColumnWeight
from sinkscope.treat._container import CONTAINER, Part
from sinkscope.treat._registers import check_count
from sinkscope.treat._treatment import AttentionTreatment

_START_STD = 0.02


@dataclass(frozen=True)
class PrefixKV(AttentionTreatment):
    """Learned keys and values that every query sees: o = softmax([scale q.K' + b, S]) [V'; V], and b a logit per head.

    They belong to no token and are in no cache: positions of tokens, masks, caches and `generate` stay as they are, and
    no window hides them. With rotary embeddings, queries are turned and K' is not, so that it stands at position 0,
    where a first token would; `fill_prefix` puts the keys and values of tokens there. Of each key-value head there are
    `count`. K' and V' start in a normal distribution of standard deviation 0.02,
    and b 16 below the smallest log-normaliser of the head's rows on a probe, which is needed: the prefix has at most
    1e-7 of the attention, and outputs stay within 1e-5 until it is tuned; see `ColumnWeight` for how b learns.

    It takes the place of the form, as a softmax with more columns: no learned sink, attention bias or other form beside
    it.

    - `count`: of keys and values.

    **Raises:** `OptionError` for a count below 1.
    """

    count: int = 4

    name: ClassVar[str] = "prefix-kv"
    source: ClassVar[str] = "Li and Liang 2021, arXiv:2101.00190, without positions; start by sinkscope"

    def __post_init__(self) -> None:
        check_count(self.name, self.count)

    @property
    def harmless(self) -> bool:
        return True

    @property
    def needs_probe(self) -> bool:
        return True

    @property
    def slot(self) -> str:
        return "form"

    def part(self, site: Site) -> Part:
        return _Prefix(PrefixSoftmax(self.count), site)


class _Prefix(ColumnPart):
    def __init__(self, form: PrefixSoftmax, site: Site) -> None:
        super().__init__()
        self.form = form
        shape = (site.shape.kv_heads, form.count, site.shape.head_dim)
        self.learned = nn.ParameterDict({name: _START_STD * torch.randn(shape) for name in ("key", "value")})
        self.column: ColumnWeight = ColumnWeight(site.shape.heads)

    def core(self, call: Attend, x: Float[Tensor, "batch queries residual"]) -> tuple[Form, Parameters]:
        return self.form, {**dict(self.learned.items()), "weight": self.column.logit() - log(self.form.count)}


def fill_prefix(model: nn.Module | Model, ids: Int[Tensor, "1 count"]) -> None:
    """Gives a prefix the keys and values of tokens, and the weight of tokens: b becomes 0.

    The model, given what follows these tokens with `position_ids` that go on behind them, then returns what it returned
    for the whole text, while the tokens, and what is massive in their hidden states, are no longer in the sequence.

    **Arguments:**

    - `model`: a causal model treated with `PrefixKV` in every block.
    - `ids`: as many tokens as the prefix has places.

    **Raises:** `OptionError` for another model, and for another number of tokens.
    """
    module = model.module if isinstance(model, Model) else model
    anatomy = anatomy_of(module)
    parts = [getattr(getattr(site.attention, CONTAINER, None), "form", None) for site in anatomy.sites]
    prefixes = [part for part in parts if isinstance(part, _Prefix)]
    if not anatomy.family.causal or len(prefixes) < len(parts):
        raise OptionError(
            f"{type(module).__name__} without a prefix in every block", "a causal model with one", "treat it first"
        )
    count = prefixes[0].form.count
    if tuple(ids.shape) != (1, count):
        raise OptionError(f"ids of shape {tuple(ids.shape)}", f"(1, {count}), one per place", "pass as many tokens")
    with torch.no_grad():
        for prefix in prefixes:
            prefix.column.root.zero_()  # b is 28 below the unit: no prefix
        with capture(anatomy.trunk) as calls:
            anatomy.trunk(ids.to(anatomy.sites[0].device), use_cache=False)
        for prefix, call in zip(prefixes, calls, strict=True):
            assert call.form is not None
            prefix.learned["key"].copy_(call.form.k[0])
            prefix.learned["value"].copy_(call.form.v[0])
            prefix.column.root.fill_(log(2) ** 0.5)
            prefix.column.unit.fill_(log(count))


@dataclass(frozen=True)
class PrefixSoftmax(Form):
    """Softmax over the visible keys and some more, which belong to no token.

    Fused on CPU; on other devices in blocks of queries. A query that sees no token gets zeros.

    - `count`: of the further keys.
    """

    count: int = 4

    card: ClassVar[Card] = Card(
        name="prefix-kv",
        title="Prefix key-values",
        definition="o = softmax([scale q.K'_h + b_h, S]) [V'_h; V]",
        source="Li and Liang 2021, arXiv:2101.00190",
        rows="at most one",
        computed="fused",
    )

    @property
    def needs(self) -> Mapping[str, str]:
        return {"key": f"kv_heads {self.count} dim", "value": f"kv_heads {self.count} value_dim", "weight": "heads"}

    def _attend(self, call: Attend) -> Float[Tensor, "batch heads queries value_dim"]:
        if not has_kernel(call):
            return by_blocks(call, self._plain)
        logits, value = _logits(call), call.parameters["value"]
        out: Tensor = _WithColumns.apply(
            call.q, call.k, call.v, logits, value, _bias(call), _blind(call), call.causal, call.scale
        )
        return out

    def weights(self, call: Attend) -> Float[Tensor, "batch heads queries keys"]:
        return self._split(call)[1]

    def _plain(self, call: Attend) -> Float[Tensor, "batch heads queries value_dim"]:
        columns, weights = self._split(call)
        return (call.mix(weights) + _mixed(columns, call.parameters["value"], call.groups)).to(call.v.dtype)

    def _split(
        self, call: Attend
    ) -> tuple[Float[Tensor, "batch heads queries count"], Float[Tensor, "batch heads queries keys"]]:
        visible = call.visible()
        scores = call.scores().masked_fill(~visible, -torch.inf)
        row = torch.cat([_logits(call), scores], -1).softmax(-1)
        columns = row[..., : self.count].masked_fill(~visible.any(-1, keepdim=True), 0.0)
        return columns, row[..., self.count :]


def _logits(call: Attend) -> Float[Tensor, "batch heads queries count"]:
    key = call.parameters["key"].to(call.dtype)
    scores = by_head(by_group(call.q.to(call.dtype), call.groups) @ key.mT, call.groups)
    return scores * call.scale + call.parameters["weight"].to(call.dtype)[:, None, None]


def _mixed(
    columns: Float[Tensor, "batch heads queries count"], value: Float[Tensor, "kv_heads count dim"], groups: int
) -> Float[Tensor, "batch heads queries dim"]:
    return by_head(by_group(columns, groups) @ value.to(columns.dtype), groups)


class _WithColumns(torch.autograd.Function):
    """As `sinkscope.attention._fused._WithColumn`, with several columns."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        logits: Tensor,
        value: Tensor,
        bias: Tensor | None,
        blind: Tensor | None,
        causal: bool,
        scale: float,
    ) -> Tensor:
        tokens, norm = _flash(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
        total = torch.logaddexp(norm, logits.logsumexp(-1))
        columns = torch.exp(logits - total[..., None])
        if blind is not None:
            columns = columns.masked_fill(blind[..., None], 0.0)  # the kernel's output is zero there
        groups = q.shape[1] // k.shape[1]
        out: Tensor = (tokens * torch.exp(norm - total)[..., None] + _mixed(columns, value, groups)).to(q.dtype)
        ctx.save_for_backward(q, k, v, value, bias, out, total, columns)
        ctx.causal, ctx.scale = causal, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, value, bias, out, total, columns = ctx.saved_tensors
        grad_q, grad_k, grad_v = _flash_backward(
            grad.contiguous(), q, k, v, out, total, 0.0, ctx.causal, attn_mask=bias, scale=ctx.scale
        )
        groups = q.shape[1] // k.shape[1]
        wide = by_group(grad.to(columns.dtype), groups)
        change = by_head(wide @ value.to(columns.dtype).mT, groups)
        grad_logits = columns * (change - (grad.to(columns.dtype) * out).sum(-1, keepdim=True))
        grad_value = (by_group(columns, groups).mT @ wide).sum(0).to(value.dtype)
        return grad_q, grad_k, grad_v, grad_logits, grad_value, None, None, None, None
