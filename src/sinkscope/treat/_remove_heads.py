"""Heads that write nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from sinkscope._errors import OptionError
from sinkscope.attention import Attend, Form, Parameters
from sinkscope.treat._anatomy import Anatomy, Site
from sinkscope.treat._container import Part
from sinkscope.treat._removed import Silenced
from sinkscope.treat._treatment import AttentionTreatment

if TYPE_CHECKING:
    from sinkscope.treat._body import Body

Heads = tuple[tuple[int, int], ...]
"""Pairs of layer and head."""


@dataclass(frozen=True)
class RemoveHeads(AttentionTreatment):
    """Heads whose output is zero, whatever they attend to.

    - `heads`: pairs of layer and head, as verdicts list them.
    - `random`: as many other heads of the model instead, drawn from all that are not chosen: the control.
    - `seed`: of that draw.

    **Raises:** `OptionError` for an empty or malformed list, heads that the model does not have, a control with fewer
    other heads than chosen ones, and `layers`, which the pairs say already.
    """

    heads: Heads
    random: bool = False
    seed: int = 0

    name: ClassVar[str] = "remove-heads"
    source: ClassVar[str] = "Sandoval-Segura et al. 2025, arXiv:2504.03889; control as in arXiv:2605.09313"

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", checked_heads(self.name, self.heads, self.layers))

    @property
    def harmless(self) -> bool:
        return False

    @property
    def slot(self) -> str:
        return "heads"

    def install(self, body: Body) -> None:
        for site, heads in chosen_heads(self.name, self._drawn(body.anatomy), body.anatomy):
            body.put(self, site, _RemovedHeads(heads, site))

    def part(self, site: Site) -> Part:
        return _RemovedHeads([head for layer, head in self.heads if layer == site.index], site)

    def _drawn(self, anatomy: Anatomy) -> Heads:
        if not self.random:
            return self.heads
        chosen_heads(self.name, self.heads, anatomy)  # they exist
        every = [(site.index, head) for site in anatomy.sites for head in range(site.shape.heads)]
        others = [pair for pair in every if pair not in self.heads]
        if len(others) < len(self.heads):
            raise OptionError(
                f"{self.name}: {len(self.heads)} of {len(every)} heads, which leaves {len(others)} for a control",
                "at most half of the heads",
                "choose fewer",
            )
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(self.seed))
        return tuple(others[at] for at in sorted(order[: len(self.heads)].tolist()))


class _RemovedHeads(Part):
    kept: Tensor

    def __init__(self, heads: Sequence[int], site: Site) -> None:
        super().__init__()
        kept = torch.ones(site.shape.heads, dtype=torch.bool)
        kept[list(heads)] = False
        self.register_buffer("kept", kept)

    def around(self, form: Form, parameters: Parameters, call: Attend) -> tuple[Form, Parameters]:
        return Silenced(form), {**parameters, "kept": self.kept}


def checked_heads(name: str, heads: Sequence[Sequence[int]], layers: tuple[int, ...] | None) -> Heads:
    """Pairs as tuples, whatever sequences they were.

    **Raises:** `OptionError` for what are no pairs, for none, for the same twice, and for layers beside them.
    """
    try:
        pairs = tuple((int(layer), int(head)) for layer, head in heads)
    except (TypeError, ValueError):
        raise OptionError(
            f"{name}: heads are {heads!r}", "pairs of layer and head", "pass for instance ((3, 5),)"
        ) from None
    if not pairs or len(set(pairs)) < len(pairs):
        raise OptionError(
            f"{name}: heads are {heads!r}", "one or more different pairs of layer and head", "correct heads"
        )
    if layers is not None:
        raise OptionError(f"{name} with heads and layers", "one of them", "leave out layers; heads name theirs")
    return pairs


def chosen_heads(name: str, heads: Heads, anatomy: Anatomy) -> list[tuple[Site, list[int]]]:
    """The attention modules of these heads, each with its heads.

    **Raises:** `OptionError` naming those that the model does not have.
    """
    sites = {site.index: site for site in anatomy.sites}
    wrong = [(layer, head) for layer, head in heads if layer not in sites or not 0 <= head < sites[layer].shape.heads]
    if wrong:
        raise OptionError(
            f"{name}: the model has no head {', '.join(map(str, wrong))} (layer, head)",
            f"layers 0 to {len(sites) - 1}, heads 0 to {anatomy.sites[0].shape.heads - 1}",
            "correct heads",
        )
    layers = sorted({layer for layer, _ in heads})
    return [(sites[layer], sorted(head for at, head in heads if at == layer)) for layer in layers]
