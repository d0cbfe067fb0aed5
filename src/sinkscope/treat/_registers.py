"""Learned tokens in a pretrained encoder, that nobody looks at to begin with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from sinkscope._errors import OptionError
from sinkscope.attention import Attend, Card, Form, Parameters, Softmax
from sinkscope.capture import RowSums
from sinkscope.treat._anatomy import Anatomy, Site
from sinkscope.treat._column import ColumnPart, ColumnWeight
from sinkscope.treat._container import Part
from sinkscope.treat._sequence import Appended, with_appended
from sinkscope.treat._starting import Starting
from sinkscope.treat._treatment import AttentionTreatment

if TYPE_CHECKING:
    from sinkscope.treat._body import Body

_START_STD = 0.02
"""Of registers that start at random; of copies, in units of the token's root mean square."""


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
    these come on top. They have no position of their own, and read from the first pass on. Queries weigh their keys
    with a learned logit b per head and block: softmax([S, S_r + b]). It starts 16 below the smallest gap, on a probe,
    between a row's log-normaliser and that of its register scores, so that they have at most 1e-7 of the attention and
    outputs stay within 1e-5; see `ColumnWeight` for how it learns. At b = 0 they are registers as published. Padding is
    no matter: registers see what any token sees, and all see them.

    Hidden states between blocks, where a model is asked for them, and attention maps have the registers at their end.

    - `count`: of registers.
    - `like`: position of a token, as the first block gets the sequence: 0 the first, -1 the last. Registers then start
      as copies of it (the mean over the probe) with 2% of noise, and from the first pass on collect what it collects.
      None: in a normal distribution of standard deviation 0.02.
    - `weighed`: with b. False is the published form without it: registers are seen as any token is, which changes the
      outputs; copies then stand in for a sink from the start.
    - `layers`: blocks in which the tokens can see the registers, all by default.

    **Raises:** `OptionError` for a count below 1, for a position that the probe does not have, and for causal models.
    """

    count: int = 4
    like: int | None = None
    weighed: bool = True

    name: ClassVar[str] = "registers"
    source: ClassVar[str] = "Darcet et al. 2024, arXiv:2309.16588; start by sinkscope"

    def __post_init__(self) -> None:
        check_count(self.name, self.count)

    @property
    def harmless(self) -> bool:
        return self.weighed

    @property
    def needs_probe(self) -> bool:
        return self.weighed or self.like is not None

    @property
    def slot(self) -> str:
        return "registers"

    def part(self, site: Site) -> Part:
        return _Seen(self.count, RegisterWeight(site.shape.heads, self.count) if self.weighed else None)

    def install(self, body: Body) -> None:
        require_kind(
            self.name, body.anatomy, ("vision", "encoder"), "take PrefixKV (prefix-kv), which causal models can have"
        )
        seeing = self.sites(body.anatomy)
        for site in body.anatomy.sites:
            body.put(self, site, self.part(site) if site in seeing else _Hidden(self.count))
        width = body.anatomy.sites[0].shape.residual
        tokens = nn.Parameter(_START_STD * torch.randn(self.count, width))
        (Appended(tokens) if self.like is None else _Copies(tokens, self.like)).install(body)


class _Copies(Appended, Starting):
    """Tokens that start as copies of one of the probe's."""

    def __init__(self, noise: nn.Parameter, like: int) -> None:
        super().__init__(noise)
        self.like = like

    def append(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if self.observing:
            self._copy(args[0] if args else kwargs["hidden_states"])
        return super().append(block, args, kwargs)

    def _copy(self, x: Float[Tensor, "batch tokens residual"]) -> None:
        if not -x.shape[1] <= self.like < x.shape[1]:
            raise OptionError(
                f"registers: like is {self.like}, and the probe has {x.shape[1]} tokens", "one of them", "correct like"
            )
        token = x[:, self.like].mean(0)
        with torch.no_grad():
            self.tokens.copy_(token + self.tokens * token.square().mean().sqrt())


class _Hidden(Part):
    """Attention whose registers read and are not read."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def enter(self, call: Attend, x: Float[Tensor, "batch queries residual"]) -> Attend:
        return with_appended(call, self.count, shown=False)


class _Seen(ColumnPart):
    """Attention whose registers are read, with a weight of their own or as tokens are."""

    def __init__(self, count: int, column: RegisterWeight | None) -> None:
        super().__init__()
        self.count = count
        self.column = column

    def enter(self, call: Attend, x: Float[Tensor, "batch queries residual"]) -> Attend:
        # On the probe weighed registers are hidden, so that the blocks behind see what they see without them.
        return with_appended(call, self.count, shown=self.column is None or not self.observing)

    def around(self, form: Form, parameters: Parameters, call: Attend) -> tuple[Form, Parameters]:
        if self.column is None or self.observing:
            return form, parameters
        return WithRegisters(form, self.count), {**parameters, "register_weight": self.column.logit()}


class RegisterWeight(ColumnWeight):
    """The logit of register keys. Its unit is the smallest of L - L_r over rows of tokens; L and L_r are the
    log-normalisers over tokens and over registers."""

    def __init__(self, heads: int, count: int) -> None:
        super().__init__(heads)
        self.count = count

    def observe(self, call: Attend) -> None:
        tokens = call.k.shape[2] - self.count
        shown = call.visible()[:, :, :tokens, :tokens]
        scores = call.scores()[:, :, :tokens]
        norm = scores[..., :tokens].masked_fill(~shown, -torch.inf).logsumexp(-1)
        gap = norm - scores[..., tokens:].logsumexp(-1)
        smallest = gap.masked_fill(~shown.any(-1), torch.inf).amin((0, 2))
        self._smallest = smallest if self._smallest is None else torch.minimum(self._smallest, smallest)


@dataclass(frozen=True)
class WithRegisters(Form):
    """Another form with a logit on the scores of the last keys.

    The logit is added by one more dimension that is 1 in every query: in this way every form takes it.

    - `inner`: the form.
    - `count`: of these keys.
    """

    inner: Form = field(default_factory=Softmax)
    count: int = 1

    card: ClassVar[Card] = Card(
        name="registers",
        title="Weighed registers",
        definition="A of another form with scores [S, S_r + b_h]",
        source="sinkscope",
        rows="any",
        computed="fused",
    )

    @property
    def needs(self) -> Mapping[str, str]:
        return {**self.inner.needs, "register_weight": "heads"}

    @property
    def rows(self) -> RowSums:
        return self.inner.rows

    def _attend(self, call: Attend) -> Float[Tensor, "batch heads queries value_dim"]:
        if type(self.inner) is not Softmax:
            return self.inner._attend(self._wide(call))
        logit = call.parameters["register_weight"]
        if torch.is_grad_enabled() and logit.requires_grad:  # the fused kernel has no gradient for what it adds
            wide = self._wide(call)
            wide = replace(wide, v=pad(call.v, (0, wide.k.shape[-1] - call.v.shape[-1])))
            return self.inner._attend(wide)[..., : call.v.shape[-1]]
        bias = pad(logit.to(call.q.dtype)[:, None].expand(-1, self.count), (call.k.shape[2] - self.count, 0))[:, None]
        bias = bias[None] if call.mask is None else bias[None].masked_fill(~call.mask, -torch.inf)
        return scaled_dot_product_attention(call.q, call.k, call.v, bias, scale=call.scale)

    def weights(self, call: Attend) -> Float[Tensor, "batch heads queries keys"]:
        return self.inner.weights(self._wide(call))

    def _wide(self, call: Attend) -> Attend:
        """The inner form's call. Kernels want widths that 8 divides."""
        batch, _, keys, dim = call.k.shape
        more = 8 * ceil((dim + 1) / 8) - dim
        one = pad(call.q.new_ones(1), (0, more - 1)).expand(*call.q.shape[:3], more)
        column = (call.parameters["register_weight"] / call.scale)[:, None, None].expand(-1, self.count, 1)
        column = pad(column.to(call.k.dtype), (0, more - 1, keys - self.count, 0)).expand(batch, -1, -1, -1)
        given = {
            name: pad(call.parameters[name], (0, more)) if axes.split()[-1] == "dim" else call.parameters[name]
            for name, axes in self.inner.needs.items()
        }
        return replace(call, q=torch.cat([call.q, one], -1), k=torch.cat([call.k, column], -1), parameters=given)
