"""What treatments put into one attention module, and how it then attends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sinkscope._errors import OptionError
from sinkscope.attention import Attend, Form, Parameters, Softmax
from sinkscope.capture import HIDDEN_BIAS
from sinkscope.treat._finish import Finish, finished
from sinkscope.treat._starting import Starting

if TYPE_CHECKING:
    from sinkscope.treat._anatomy import Site
    from sinkscope.treat._body import Body

CONTAINER = "sinkscope"
"""Name of the container in an attention module, and of the attention function that looks for it."""

ORDER = ("registers", "prefix", "values", "removal", "form", "heads", "norm", "gate", "pathway")
"""Slots of an attention, in the order in which they act: what changes the sequence, the values, which of them can be
seen, the softmax or what replaces it, which heads are left, the norm of the head outputs, their gate, and what is added
beside them."""


class Part(Starting):
    """What one treatment puts into one attention: its parameters, and what it does there. By default nothing.

    - `treatment`: the treatment's name.
    """

    treatment: str

    def attach(self, site: Site, body: Body) -> None:
        """Adds hooks outside the attention function, through `body.hook`."""

    def enter(self, call: Attend, x: Float[Tensor, "batch queries residual"]) -> Attend:
        """The call that attention gets; `x` is the input of the attention module."""
        return call

    def core(self, call: Attend, x: Float[Tensor, "batch queries residual"]) -> tuple[Form, Parameters] | None:
        """The form that takes the place of the softmax, with its parameters; None to leave it."""
        return None

    def around(self, form: Form, parameters: Parameters, call: Attend) -> tuple[Form, Parameters]:
        """A form that edits what the attention's form does, with its parameters; by default the form as it is."""
        return form, parameters

    def finish(self, x: Float[Tensor, "batch queries residual"]) -> Finish | None:
        """What is done to the head outputs; None for nothing."""
        return None

    def left(self, call: Attend, parameters: Parameters) -> Attend:
        """The call without the keys that this part hides, given the form's parameters; by default the call as it is."""
        return call

    def observe(self, call: Attend) -> None:
        """Told of every call on the probe input, before `settle`: as `enter` gave it, without keys that are hidden."""


class Container(nn.Module):
    """The parts in one attention module: submodules named after their slots."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Tensor | None = None

    @property
    def parts(self) -> dict[str, Part]:
        """The parts by slot, in the order in which they act."""
        found = ((slot, getattr(self, slot, None)) for slot in ORDER)
        return {slot: part for slot, part in found if isinstance(part, Part)}

    def attend(
        self,
        x: Float[Tensor, "batch queries residual"],
        q: Float[Tensor, "batch heads queries dim"],
        k: Float[Tensor, "batch kv_heads keys dim"],
        v: Float[Tensor, "batch kv_heads keys dim"],
        mask: Tensor | None,
        causal: bool,
        scale: float,
        dropout: float = 0.0,
        need_weights: bool = False,
    ) -> tuple[Float[Tensor, "batch heads queries dim"], Float[Tensor, "batch heads queries keys"] | None]:
        """Head outputs and, on request, weights.

        **Raises:** `OptionError` for dropout of weights, and for masks that do more than hide keys.
        """
        if dropout > 0:
            raise OptionError(
                f"dropout of {dropout} on the weights of treated attention",
                "none",
                "call eval() on the model, or set its attention dropout to 0",
            )
        call = Attend(q, k, v, None if mask is None else visible(mask), causal, scale, {})
        form: Form = Softmax()
        parameters: Parameters = {}
        finishes: list[Finish] = []
        seen: list[tuple[Part, Attend]] = []
        parts = self.parts.values()
        for part in parts:
            call = part.enter(call, x)
            if part.observing:
                seen.append((part, call))
            form, parameters = part.core(call, x) or (form, parameters)
            finish = part.finish(x)
            if finish is not None:
                finishes.append(finish)
        for part in parts:
            form, parameters = part.around(form, parameters, call)
        for part, given in seen:
            for other in parts:
                given = other.left(given, parameters)
            part.observe(given)
        form, parameters = finished(form, parameters, finishes)
        return _run(form, call, parameters, need_weights)


def visible(mask: Float[Tensor, "*shape"] | Bool[Tensor, "*shape"]) -> Bool[Tensor, "batch heads queries keys"]:
    """Which keys a mask lets be seen, as forms take it.

    **Raises:** `OptionError` for an additive mask with values that neither show nor hide.
    """
    mask = mask[(None,) * (4 - mask.dim())]
    if mask.dtype == torch.bool:
        return mask
    shown = mask > HIDDEN_BIAS
    if bool((shown & (mask != 0)).any()):
        raise OptionError(
            "an attention mask that adds to scores",
            "zeros, and large negative numbers that hide keys",
            "pass a boolean mask",
        )
    return shown


def _run(
    form: Form, call: Attend, parameters: Mapping[str, Tensor], need_weights: bool
) -> tuple[Tensor, Tensor | None]:
    given: dict[str, Any] = {"mask": call.mask, "causal": call.causal, "scale": call.scale, "parameters": parameters}
    if need_weights:
        return form(call.q, call.k, call.v, need_weights=True, **given)
    return form(call.q, call.k, call.v, **given), None
