"""What is done to head outputs behind a form: a norm, then a gate. With the form it makes one form again, so that a
capture sees the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sinkscope.attention import Attend, Card, Form, Parameters, Softmax
from sinkscope.capture import RowSums


@dataclass(frozen=True)
class Norm:
    """Head outputs o become o + mix (rms_norm(o) gain - o).

    - `gain`: over the dimensions of a head.
    - `mix`: per head; None for 1, the norm alone.
    """

    gain: Float[Tensor, " value_dim"]
    mix: Float[Tensor, " heads"] | None
    eps: float


@dataclass(frozen=True)
class Gated:
    """Head outputs times a gate."""

    gate: Float[Tensor, "#batch heads #queries #value_dim"]


Finish = Norm | Gated


def finished(form: Form, parameters: Parameters, finishes: Sequence[Finish]) -> tuple[Form, Parameters]:
    """The form with what is done to its outputs, and its parameters."""
    norm = next((finish for finish in finishes if isinstance(finish, Norm)), None)
    gated = next((finish for finish in finishes if isinstance(finish, Gated)), None)
    if norm is None and gated is None:
        return form, parameters
    given = dict(parameters)
    if norm is not None:
        given["norm_gain"] = norm.gain
        if norm.mix is not None:
            given["norm_mix"] = norm.mix
    gate: Literal["headwise", "elementwise"] | None = None
    if gated is not None:
        given["output_gate"] = gated.gate
        gate = "headwise" if gated.gate.shape[-1] == 1 else "elementwise"
    mixed = norm is not None and norm.mix is not None
    return Finished(form, None if norm is None else norm.eps, mixed, gate), given


@dataclass(frozen=True)
class Finished(Form):
    """Another form, its head outputs normalised and gated.

    A headwise gate scales the weights of a query, which are given as A_ij g_i. No weights can express a norm or an
    elementwise gate: these are no part of them.

    - `inner`: the form.
    - `norm`: the norm's epsilon, None for no norm.
    - `mixed`: the norm is mixed with what went in.
    - `gate`: `headwise`, `elementwise` or None.
    """

    inner: Form = field(default_factory=Softmax)
    norm: float | None = None
    mixed: bool = False
    gate: Literal["headwise", "elementwise"] | None = None

    card: ClassVar[Card] = Card(
        name="treated",
        title="Treated",
        definition="g * norm(A v), A of another form",
        source="sinkscope",
        rows="any",
        computed="fused",
    )

    @property
    def needs(self) -> Mapping[str, str]:
        found = dict(self.inner.needs)
        if self.norm is not None:
            found["norm_gain"] = "value_dim"
            if self.mixed:
                found["norm_mix"] = "heads"
        if self.gate is not None:
            found["output_gate"] = f"#batch heads #queries {1 if self.gate == 'headwise' else 'value_dim'}"
        return found

    @property
    def rows(self) -> RowSums:
        return "any" if self.gate == "headwise" else self.inner.rows  # a gate that starts at 1 may go beyond it

    @property
    def native(self) -> bool:
        return self.inner.native and self.gate != "headwise"

    def _attend(self, call: Attend) -> Float[Tensor, "batch heads queries value_dim"]:
        given = call.parameters
        out = self.inner._attend(self._inner_call(call))
        if self.norm is not None:
            gain = given["norm_gain"].to(out.dtype)
            normed = F.rms_norm(out, gain.shape, gain, self.norm)
            out = out + given["norm_mix"].to(out.dtype)[:, None, None] * (normed - out) if self.mixed else normed
        return out if self.gate is None else out * given["output_gate"].to(out.dtype)

    def weights(self, call: Attend) -> Float[Tensor, "batch heads queries keys"]:
        found = self.inner.weights(self._inner_call(call))
        return found * call.parameters["output_gate"].to(found.dtype) if self.gate == "headwise" else found

    def _inner_call(self, call: Attend) -> Attend:
        return replace(call, parameters={name: call.parameters[name] for name in self.inner.needs})
