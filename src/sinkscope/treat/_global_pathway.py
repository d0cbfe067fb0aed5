"""A second way for global content beside the attention of a pretrained model, that starts closed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sinkscope import attention
from sinkscope._errors import OptionError
from sinkscope.attention import Attend
from sinkscope.treat._anatomy import Site, anatomy_of
from sinkscope.treat._container import Part
from sinkscope.treat._treatment import AttentionTreatment

if TYPE_CHECKING:
    from sinkscope.treat._body import Body


@dataclass(frozen=True)
class GlobalPathway(AttentionTreatment):
    """A position-free summary g of all tokens, added to what attention adds to the residual stream: gamma_i W_OG g.

    As in `sinkscope.attention.GlobalPathway`, except that W_OG starts at 0, so that the outputs are what they were. It
    is added behind LayerScale, as in the source. For models that see in both directions. With the penalty on what all
    tokens receive in common (`common_mode_penalty` of `branch_outputs`) attention leaves global content to it.

    - `width`: of g.
    - `gate`: gamma is `learned` or `hier`.

    **Raises:** `OptionError` for other values, and for causal models.
    """

    width: int = 64
    gate: Literal["learned", "hier"] = "learned"

    name: ClassVar[str] = "global-pathway"
    source: ClassVar[str] = "Fesser, Jacobs, Fel, Keller, Kakade 2026, arXiv:2606.08105, revised, Eq. 4"

    def __post_init__(self) -> None:
        attention.GlobalPathway(self.width, self.gate)  # checks the values

    @property
    def harmless(self) -> bool:
        return True

    @property
    def slot(self) -> str:
        return "pathway"

    def part(self, site: Site) -> Part:
        if site.family.causal:
            raise OptionError(
                f"global-pathway for {site.name}, which is causal",
                "a model that sees in both directions: the pathway hands later tokens to earlier ones",
                "leave it out",
            )
        return _Pathway(attention.GlobalPathway(self.width, self.gate), site)


class _Pathway(Part):
    def __init__(self, form: attention.GlobalPathway, site: Site) -> None:
        super().__init__()
        self.form = form
        self.learned = nn.ParameterDict(form.parameters(site.shape))
        nn.init.zeros_(self.learned["output"])
        self.seen: tuple[Tensor, Tensor | None] | None = None

    def attach(self, site: Site, body: Body) -> None:
        body.hook(site.branch.register_forward_hook(self.add_summary))

    def enter(self, call: Attend, x: Float[Tensor, "batch queries residual"]) -> Attend:
        self.seen = x, None if call.mask is None else _padding(call.mask)
        return call

    def add_summary(self, _module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> Tensor:
        """Forward hook of the branch."""
        assert self.seen is not None
        (x, mask), self.seen = self.seen, None
        return self.form.after(out, x, dict(self.learned.items()), mask, causal=False)


def _padding(mask: Bool[Tensor, "#batch #heads #queries keys"]) -> Bool[Tensor, "#batch 1 1 keys"]:
    row = mask[:, :1, :1]
    if not torch.equal(mask, row.expand_as(mask)):
        raise OptionError(
            "global-pathway: a mask that hides different tokens from different queries",
            "one that marks padding",
            "leave the pathway out",
        )
    return row


@contextmanager
def branch_outputs(model: nn.Module) -> Iterator[list[Float[Tensor, "batch tokens residual"]]]:
    """Collects what attention adds to the residual stream in every block but the first, LayerScale included and a
    global pathway excluded: the argument of `sinkscope.attention.common_mode_penalty`.

    ```python
    with branch_outputs(model) as outputs:
        loss = task_loss(model(x))
    loss = loss + 0.1 * common_mode_penalty(outputs)
    ```

    Works for any supported model, treated or not. Outputs stay those of the last forward pass, so that gradients of one
    step hold no memory in the next.

    **Raises:** `OptionError` for models of no supported family.
    """
    outputs: list[Tensor] = []
    sites = anatomy_of(model).sites

    def start(_module: nn.Module, _args: tuple[Any, ...]) -> None:
        outputs.clear()

    def collect(_module: nn.Module, _args: tuple[Any, ...], out: Tensor) -> None:
        outputs.append(out)

    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(start).remove)
        for site in sites[1:]:
            stack.callback(site.branch.register_forward_hook(collect, prepend=True).remove)
        yield outputs
