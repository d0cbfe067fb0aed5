"""Sinks that nobody reads, and as many other keys for comparison."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from sinkscope._errors import OptionError
from sinkscope.attention import Attend, Form, Parameters
from sinkscope.treat._anatomy import Anatomy, Site
from sinkscope.treat._container import Part
from sinkscope.treat._remove_heads import Heads, checked_heads, chosen_heads
from sinkscope.treat._removed import How, Removed, column_mass, removed_keys
from sinkscope.treat._treatment import AttentionTreatment

if TYPE_CHECKING:
    from sinkscope.treat._body import Body

Which = Literal["first", "cls", "register", "sep", "mass"]
_HOW = ("mask", "redirect", "zero")
_WHICH = ("first", "cls", "register", "sep", "mass")


@dataclass(frozen=True)
class RemoveSinks(AttentionTreatment):
    """Takes from queries what they read from sinks. Every query keeps what it reads from its own key: a first token
    that sees nothing else is not changed.

    - `how`: `mask`, the sink's score is minus infinity, and its weight is shared out among the other keys; for softmax
      this is what `sinkscope verify` calls redirect. `zero`, the sink keeps its weight and has a value of zero.
      `redirect`, its weight goes to the query's own key, as in a head that has no sink and attends to itself.
    - `which`: `first`, the first token that is no padding; `cls` and `register`, tokens of these roles; `sep`,
      separators, by their ids in `tokens`; `mass`, of every input and head the `count` keys with the largest sums of
      weights over all queries, later ones included, so that a causal model with it is no language model any more. Or
      positions in the sequence, from 0.
    - `count`: of keys for `mass`.
    - `tokens`: ids for `sep`; those of the model's configuration by default.
    - `heads`: pairs of layer and head, all by default.
    - `random`: as many other keys of the same input instead, drawn from all that are no padding: the control. For
      `mass` others in every head and layer, else the same for the whole model, as the sinks are.
    - `seed`: of that draw, which does not depend on how inputs are batched.

    **Raises:** `OptionError` for other values; roles that the model does not have; at use for an input without these
    positions, and with a key-value cache where the choice needs the whole sequence.
    """

    how: How = "mask"
    which: Which | tuple[int, ...] = "first"
    count: int = 1
    tokens: tuple[int, ...] = ()
    heads: Heads | None = None
    random: bool = False
    seed: int = 0

    name: ClassVar[str] = "remove-sinks"
    source: ClassVar[str] = (
        "masking: arXiv:2605.09313 and arXiv:2510.15731; zero: Fesser et al. 2026, arXiv:2606.08105; "
        "own key: the switch of Sukenik et al., arXiv:2605.08453"
    )

    def __post_init__(self) -> None:
        if self.how not in _HOW:
            raise OptionError(f"{self.name}: how is {self.how!r}", "mask, redirect or zero", "correct how")
        positions = (
            isinstance(self.which, tuple) and self.which and all(type(at) is int and at >= 0 for at in self.which)
        )
        if self.which not in _WHICH and not positions:
            raise OptionError(
                f"{self.name}: which is {self.which!r}",
                f"{', '.join(_WHICH)}, or a tuple of positions",
                "correct which",
            )
        if self.count < 1:
            raise OptionError(f"{self.name}: count is {self.count!r}", "1 or more", "correct count")
        if self.heads is not None:
            object.__setattr__(self, "heads", checked_heads(self.name, self.heads, self.layers))

    @property
    def harmless(self) -> bool:
        return False

    @property
    def slot(self) -> str:
        return "removal"

    def install(self, body: Body) -> None:
        choice = _of_role(self.which, body.anatomy) if self.which in ("cls", "register") else self.which
        chosen: list[tuple[Site, list[int]]] = (
            [(site, list(range(site.shape.heads))) for site in self.sites(body.anatomy)]
            if self.heads is None
            else chosen_heads(self.name, self.heads, body.anatomy)
        )
        for site, heads in chosen:
            part = _Removal(self, site, heads, choice)
            body.put(self, site, part)
            if choice == "sep":
                embedding = _token_embedding(body.anatomy)
                body.hook(body.anatomy.trunk.register_forward_pre_hook(part.forget_ids))
                body.hook(embedding.register_forward_pre_hook(part.note_ids))

    def part(self, site: Site) -> Part:
        return _Removal(self, site, list(range(site.shape.heads)), self.which)


class _Removal(Part):
    """Finds the keys of every call."""

    chosen: Tensor

    def __init__(self, options: RemoveSinks, site: Site, heads: list[int], choice: str | tuple[int, ...]) -> None:
        super().__init__()
        self.options, self.choice, self.index = options, choice, site.index
        chosen = torch.zeros(site.shape.heads, dtype=torch.bool)
        chosen[heads] = True
        self.everywhere = len(heads) == site.shape.heads
        self.register_buffer("chosen", chosen)
        self.tokens = options.tokens or _separators(site)
        self.causal = site.family.causal
        self.window = sliding_window(site.attention)
        self.ids: Tensor | None = None
        if choice == "sep" and not self.tokens:
            raise OptionError(
                f"{options.name}: the configuration names no separator",
                "token ids",
                "pass tokens=, of [SEP] for instance",
            )

    def forget_ids(self, _module: nn.Module, _args: tuple[Any, ...]) -> None:
        """Forward pre-hook of the trunk, which may be given embeddings."""
        self.ids = None

    def note_ids(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of the token embedding."""
        self.ids = args[0]

    def around(self, form: Form, parameters: Parameters, call: Attend) -> tuple[Form, Parameters]:
        options = self.options
        axes = {axis for names in form.needs.values() for axis in names.split()}
        if options.how == "redirect" and axes & {"dim", "value_dim"}:
            raise OptionError(
                f"{options.name}: redirect around {form.card.name}", "mask or zero", "correct how, or leave one out"
            )
        with torch.no_grad():
            shown = _shown(call)
            keys = self._keys(form, parameters, call, shown)
            if options.random:
                keys = self._others(keys, shown)
            most = int(keys.sum(-1).max()) if self.choice == "sep" else self._most
            if not self.everywhere:
                keys = keys & self.chosen[:, None]
            given = {**parameters, "removed": keys, "own": _own_keys(call)}
        return Removed(form, options.how, min(most, call.k.shape[2])), given

    def left(self, call: Attend, parameters: Parameters) -> Attend:
        if self.options.how != "mask":
            return call
        shown = ~removed_keys(replace(call, parameters=parameters))
        return replace(call, mask=shown if call.mask is None else call.mask & shown)

    @property
    def _most(self) -> int:
        if isinstance(self.choice, tuple):
            return len(self.choice)
        return self.options.count if self.choice == "mass" else 1

    def _keys(
        self, form: Form, parameters: Parameters, call: Attend, shown: Bool[Tensor, "#batch keys"]
    ) -> Bool[Tensor, "#batch #heads keys"]:
        count = call.k.shape[2]
        moved = self.window is not None and count >= self.window  # the cache may have dropped the first keys
        if self.choice in ("mass", "sep") or self.options.random or moved:
            self._require_whole(call)
        if isinstance(self.choice, tuple):
            there = [at for at in self.choice if at < count]
            missing = [at for at in self.choice if at >= count]
            if missing and not self.causal:  # a causal model may get to them later
                raise OptionError(
                    f"{self.options.name}: no position {missing[0]} in an input of {count} tokens",
                    f"positions from 0 to {count - 1}",
                    "correct which, or leave out shorter inputs",
                )
            return self._at(torch.tensor([there], dtype=torch.long, device=call.q.device), count)
        if self.choice == "first":
            return self._at(shown.int().argmax(-1, keepdim=True), count)
        if self.choice == "sep":
            if self.ids is None:
                raise OptionError(f"{self.options.name}: separators among embeddings", "token ids", "pass input_ids")
            length = count - self.ids.shape[-1]  # registers at the end are no token
            found = torch.isin(self.ids, torch.tensor(self.tokens, device=shown.device))
            found = pad(found, (0, length))
            return (found & shown)[:, None]
        mass = column_mass(form, parameters, call, shown).masked_fill(~shown[:, None], -1.0)
        at = mass.topk(min(self.options.count, count)).indices
        return torch.zeros_like(mass, dtype=torch.bool).scatter(-1, at, True) & shown[:, None]

    def _at(self, positions: Int[Tensor, "batch chosen"], count: int) -> Bool[Tensor, "batch 1 keys"]:
        found = torch.zeros(len(positions), count, dtype=torch.bool, device=positions.device)
        return found.scatter(-1, positions, True)[:, None]

    def _others(
        self, keys: Bool[Tensor, "#batch #heads keys"], shown: Bool[Tensor, "#batch keys"]
    ) -> Bool[Tensor, "#batch #heads keys"]:
        """As many keys that are none of these."""
        heads, count = keys.shape[1:]
        seed = self.options.seed if heads == 1 else self.options.seed + 1_000_003 * (self.index + 1)
        ranks = torch.rand(heads, count, generator=torch.Generator().manual_seed(seed)).to(keys.device)
        free = shown[:, None] & ~keys
        order = ranks.masked_fill(~free, -1.0).argsort(-1, descending=True).argsort(-1)
        return (order < keys.sum(-1, keepdim=True)) & free

    def _require_whole(self, call: Attend) -> None:
        queries, keys = call.q.shape[2], call.k.shape[2]
        if queries != keys:
            raise OptionError(
                f"{self.options.name} of {self.options.which} with {queries} queries and {keys} keys",
                "the whole sequence, which a key-value cache does not keep",
                "pass use_cache=False",
            )


def _shown(call: Attend) -> Bool[Tensor, "#batch keys"]:
    """Keys that some query sees: tokens that are no padding."""
    if call.mask is None:
        return torch.ones(1, call.k.shape[2], dtype=torch.bool, device=call.q.device)
    return call.mask.any(2).any(1)


def _own_keys(call: Attend) -> Int[Tensor, "#batch 1 queries"]:
    """The key of every query's token: of the same index, or the last that it sees where a cache has more keys."""
    queries, keys = call.q.shape[2], call.k.shape[2]
    if queries < keys and call.mask is not None:
        last = keys - 1 - call.mask.any(1).flip(-1).int().argmax(-1)
        return last.expand(-1, queries)[:, None]
    return torch.arange(keys - queries, keys, device=call.q.device)[None, None]


def _of_role(role: str | tuple[int, ...], anatomy: Anatomy) -> tuple[int, ...] | str:
    """Positions of a role among the tokens in front."""
    if anatomy.family.kind == "encoder" and role == "cls":
        return "first"
    found = tuple(at for at, has in enumerate(anatomy.prefix) if has == role)
    if not found:
        raise OptionError(
            f"{RemoveSinks.name}: {anatomy.family.title} has no {role} token here",
            f"first, mass, positions{', ' if anatomy.prefix else ''}{' or '.join(sorted(set(anatomy.prefix)))}",
            "correct which",
        )
    return found


def _token_embedding(anatomy: Anatomy) -> nn.Module:
    if anatomy.family.kind == "vision":
        raise OptionError(f"{RemoveSinks.name}: separators of pictures", "a model of text", "correct which")
    trunk: Any = anatomy.trunk
    embedding: nn.Module = trunk.get_input_embeddings()
    return embedding


def sliding_window(attention: Any) -> int | None:
    """Of sliding attention: the module's own where it has one, which differs between layers in some models."""
    owner = attention if hasattr(attention, "sliding_window") else getattr(attention, "config", None)
    return getattr(owner, "sliding_window", None)


def _separators(site: Site) -> tuple[int, ...]:
    found = getattr(getattr(site.attention, "config", None), "sep_token_id", None)
    return () if found is None else (int(found),)
