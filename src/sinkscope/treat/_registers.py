"""Learned tokens in a pretrained encoder, that nobody looks at to begin with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from sinkscope._errors import OptionError
from sinkscope.attention import Attend, Card, Form, Parameters, Softmax
from sinkscope.treat._anatomy import Anatomy, Site
from sinkscope.treat._column import ColumnPart, ColumnWeight
from sinkscope.treat._container import Part
from sinkscope.treat._sequence import Appended, with_appended
from sinkscope.treat._treatment import AttentionTreatment

if TYPE_CHECKING:
    from sinkscope.treat._body import Body

_START_STD = 0.02


def check_count(name: str, count: object) -> None:
    """Raises `OptionError` unless `count` is a whole number from 1 on."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise OptionError(f"{name}: count is {count!r}", "a whole number from 1 on", "correct count")


def require_kind(name: str, anatomy: Anatomy, kinds: tuple[str, ...], instead: str) -> None:
    """Raises `OptionError` unless the model is of one of these kinds."""
    if anatomy.family.kind not in kinds:
        raise OptionError(
            f"{name} for {anatomy.family.title}, of kind {anatomy.family.kind}", " or ".join(kinds), instead
        )


@dataclass(frozen=True)
class Registers(AttentionTreatment):
    """Learned tokens behind those of the input, from the first block to the last; outputs keep their shape.

    For models that see in both directions, whatever their prefix tokens; registers that a model has already stay, and
    these come on top. They have no position, start in a normal distribution of standard deviation 0.02, and read from
    the first pass on. Queries weigh their keys with a learned logit b per head and block: softmax([S, S_r + b]). It
    starts 16 below the smallest gap, on a probe, between a row's log-normaliser and that of its register scores, so
    that they have at most 1e-7 of the attention and outputs stay within 1e-5; see `ColumnWeight` for how it learns. At
    b = 0 they are registers as published. Padding is no matter: registers see what any token sees, and all see them.

    Hidden states between blocks, where a model is asked for them, and attention maps have the registers at their end.

    - `count`: of registers.
    - `layers`: blocks in which the tokens can see the registers, all by default.

    **Raises:** `OptionError` for a count below 1, and for causal models.
    """

    count: int = 4

    name: ClassVar[str] = "registers"
    source: ClassVar[str] = "Darcet et al. 2024, arXiv:2309.16588; start by sinkscope"

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
        return "registers"

    def part(self, site: Site) -> Part:
        return _Seen(self.count, site.shape.heads)

    def install(self, body: Body) -> None:
        require_kind(self.name, body.anatomy, ("vision", "encoder"), "take PrefixKV(), which causal models can have")
        seeing = self.sites(body.anatomy)
        for site in body.anatomy.sites:
            body.put(self, site, self.part(site) if site in seeing else _Hidden(self.count))
        width = body.anatomy.sites[0].shape.residual
        Appended(nn.Parameter(_START_STD * torch.randn(self.count, width))).install(body)


class _Hidden(Part):
    """Attention whose registers read and are not read."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def enter(self, call: Attend, x: Float[Tensor, "batch queries residual"]) -> Attend:
        return with_appended(call, self.count, shown=False)


class _Seen(ColumnPart):
    """Attention whose registers are read with a weight of their own."""

    def __init__(self, count: int, heads: int) -> None:
        super().__init__()
        self.count = count
        self.column: RegisterWeight = RegisterWeight(heads, count)

    def enter(self, call: Attend, x: Float[Tensor, "batch queries residual"]) -> Attend:
        if self.column.observing:  # so that the blocks behind see on the probe what they see without registers
            return with_appended(call, self.count, shown=False)
        return _weighed(with_appended(call, self.count), self.count, self.column.logit())

    def core(self, call: Attend, x: Float[Tensor, "batch queries residual"]) -> tuple[Form, Parameters] | None:
        return None if self.column.observing else (RegisterSoftmax(), {})


class RegisterWeight(ColumnWeight):
    """The logit of register keys. Its unit is the smallest of L - L_r over rows of tokens; L and L_r are the
    log-normalisers over tokens and over registers."""

    def __init__(self, heads: int, count: int) -> None:
        super().__init__(heads)
        self.count = count

    @property
    def observing(self) -> bool:
        """Whether a probe runs."""
        return self._smallest is not None

    def observe(self, call: Attend) -> None:
        tokens = call.k.shape[2] - self.count
        shown = with_appended(call, self.count).visible()[:, :, :tokens, :tokens]
        scores = call.scores()[:, :, :tokens]
        norm = scores[..., :tokens].masked_fill(~shown, -torch.inf).logsumexp(-1)
        gap = norm - scores[..., tokens:].logsumexp(-1)
        smallest = gap.masked_fill(~shown.any(-1), torch.inf).amin((0, 2))
        self._smallest = smallest if self._smallest is None else torch.minimum(self._smallest, smallest)


def _weighed(call: Attend, count: int, logit: Float[Tensor, " heads"]) -> Attend:
    """Adds a logit to the scores of the last `count` keys, by one more dimension that is 1 in every query: in this way
    every form of attention takes it. Kernels want widths that 8 divides."""
    batch, _, keys, dim = call.k.shape
    more = 8 * ceil((dim + 1) / 8) - dim
    one = pad(call.q.new_ones(1), (0, more - 1)).expand(*call.q.shape[:3], more)
    column = (logit / call.scale)[:, None, None].expand(-1, count, 1).to(call.k.dtype)
    column = pad(column, (0, more - 1, keys - count, 0)).expand(batch, -1, -1, -1)
    return replace(call, q=torch.cat([call.q, one], -1), k=torch.cat([call.k, column], -1))


@dataclass(frozen=True)
class RegisterSoftmax(Softmax):
    """Softmax of queries and keys that `_weighed` has widened."""

    card: ClassVar[Card] = Card(
        name="registers",
        title="Softmax with weighed registers",
        definition="A = softmax([S, S_r + b_h])",
        source="sinkscope",
        rows="one",
        computed="fused",
    )

    def _attend(self, call: Attend) -> Float[Tensor, "batch heads queries value_dim"]:
        dim = call.v.shape[-1]
        if torch.is_grad_enabled() and call.k.requires_grad:  # the fused kernel has no gradient for what it adds
            wide = replace(call, v=pad(call.v, (0, call.k.shape[-1] - dim)))
            return super()._attend(wide)[..., :dim]
        bias = (call.k[:1, :, None, :, dim] * call.scale).to(call.q.dtype)
        if call.mask is not None:
            bias = bias.masked_fill(~call.mask, -torch.inf)
        return scaled_dot_product_attention(call.q[..., :dim], call.k[..., :dim], call.v, bias, scale=call.scale)
