"""Sigmoid gates on head outputs or values, that start open."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sinkscope._errors import OptionError
from sinkscope.attention import OutputGate, ValueGate
from sinkscope.treat._anatomy import Site
from sinkscope.treat._container import Part
from sinkscope.treat._finish import Gated
from sinkscope.treat._treatment import AttentionTreatment

if TYPE_CHECKING:
    from sinkscope.treat._body import Body


@dataclass(frozen=True)
class Gate(AttentionTreatment):
    """A gate sigmoid(W x + b) / start on head outputs or values; x is the input of the attention module.

    W starts at 0 and b at logit(start): every gate is 1, and the outputs are what they were. With `start` 1/2 the gate
    is 2 sigmoid(W x + b), exactly 1 at the start in every number type, where its slope is largest. A gate that starts
    as sigmoid of a large b would be as harmless, but its slope, and with it every gradient, would be near 0. The price
    is a gate that can open to 1 / start.

    - `kind`: `headwise`, one gate per head, or `elementwise`, one per dimension of a head.
    - `position`: `output`, behind attention and before the output projection; `value`, behind the projection of values,
      per key-value head. Gated values are what a key-value cache keeps.
    - `input_dependent`: False leaves out W x.
    - `start`: of the sigmoid, between 0 and 1.

    **Raises:** `OptionError` for other values; where the attention has a gate of its own (timm's `gated`).
    """

    kind: Literal["headwise", "elementwise"] = "headwise"
    position: Literal["output", "value"] = "output"
    input_dependent: bool = True
    start: float = 0.5

    name: ClassVar[str] = "gate"
    source: ClassVar[str] = (
        "Qiu et al. 2025, arXiv:2505.06708, positions G1 and G2; start as in Bondarenko et al. 2023, arXiv:2306.12929"
    )

    def __post_init__(self) -> None:
        for option, value, known in (
            ("kind", self.kind, ("headwise", "elementwise")),
            ("position", self.position, ("output", "value")),
        ):
            if value not in known:
                raise OptionError(f"gate: {option} is {value!r}", " or ".join(known), f"correct {option}")
        if not 0 < self.start < 1:
            raise OptionError(f"gate: start is {self.start!r}", "a number between 0 and 1", "correct start")

    @property
    def harmless(self) -> bool:
        return True

    @property
    def slot(self) -> str:
        return "gate" if self.position == "output" else "values"

    def part(self, site: Site) -> Part:
        if getattr(site.attention, "gate", None) is not None:
            raise OptionError(
                f"gate: {site.name} has a gate of its own", "attention without one", "create the model with gated=False"
            )
        return _OutputGate(self, site) if self.position == "output" else _ValueGate(self, site)


class _Gate(Part):
    """Weight and bias of a gate, and their starting values."""

    def __init__(self, options: Gate, site: Site) -> None:
        super().__init__()
        form = OutputGate if options.position == "output" else ValueGate
        self.form = form(input_dependent=options.input_dependent, granularity=options.kind)
        self.start = options.start
        starts = {"gate_weight": 0.0, "gate_bias": log(options.start / (1 - options.start))}
        self.learned = nn.ParameterDict(
            {name: torch.full_like(value, starts[name]) for name, value in self.form.parameters(site.shape).items()}
        )

    def open(self, x: Tensor) -> Float[Tensor, "#batch heads #tokens #dim"]:
        """The gate."""
        gate: Tensor = self.form.context(x, dict(self.learned.items()))["gate"] / self.start
        return gate


class _OutputGate(_Gate):
    def finish(self, x: Float[Tensor, "batch queries residual"]) -> Gated:
        return Gated(self.open(x))


class _ValueGate(_Gate):
    """Acts where values are made, because attention sees those of earlier tokens only through the cache."""

    def __init__(self, options: Gate, site: Site) -> None:
        super().__init__(options, site)
        self.columns = 3 if site.family.fused else 1

    def attach(self, site: Site, body: Body) -> None:
        body.hook(site.value.register_forward_hook(self.gate_values))

    def gate_values(self, _module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        """Forward hook of the projection."""
        *others, values = out.chunk(self.columns, -1)
        gate = self.open(args[0]).transpose(1, 2).to(values.dtype)
        heads = gate.shape[2]
        gated = (values.reshape(*values.shape[:-1], heads, -1) * gate).flatten(-2)
        return torch.cat([*others, gated], -1) if others else gated
