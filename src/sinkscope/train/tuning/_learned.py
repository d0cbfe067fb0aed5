"""The parameters that are tuned, and the optimiser's state of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from sinkscope.train.tuning._options import TuneOptions
from sinkscope.treat._column import ColumnWeight
from sinkscope.treat._gate import _Gate
from sinkscope.treat._global_pathway import _Pathway

_MOMENTS = ("exp_avg", "exp_avg_sq")
_WEIGHTS = ("gate_weight", "pool", "value", "output")
_VALUE, _STEP = "value", "step"
_SHARE = "share"
"""Of the learning rate that a parameter gets."""
_COLUMN_RATE = 0.03
"""With it the weight of a column, which starts at 3e-4, comes to 1 within 50 steps or so."""


class Learned:
    """Parameters of any number type under AdamW, which works on copies in float32 where the type is shorter: steps are
    smaller than the resolution of half precision.

    - `parameters`: by name.
    - `shares`: of the learning rate that a parameter gets, 1 by default; see `lr` of `TuneOptions`.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], shares: Mapping[str, float], options: TuneOptions
    ) -> None:
        self.parameters = dict(parameters)
        self._values = {name: _long(parameter) for name, parameter in self.parameters.items()}
        self._clip = float("inf") if options.clip is None else options.clip
        groups = [{"params": [value], _SHARE: shares.get(name, 1.0)} for name, value in self._values.items()]
        self._optimiser = torch.optim.AdamW(groups, options.lr, weight_decay=options.weight_decay)

    def gradients(self, loss: Float[Tensor, ""]) -> float:
        """Sets gradients, clipped, and returns their norm before that."""
        self._optimiser.zero_grad()
        for parameter in self.parameters.values():
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        for name, value in self._values.items():
            gradient = self.parameters[name].grad
            value.grad = torch.zeros_like(value) if gradient is None else gradient.to(value.dtype)
        return float(torch.nn.utils.clip_grad_norm_(self._values.values(), self._clip))

    def step(self, rate: float) -> None:
        """One update by the gradients that were set."""
        for group in self._optimiser.param_groups:
            group["lr"] = rate * group[_SHARE]
        self._optimiser.step()
        self._write()

    def values(self) -> dict[str, Tensor]:
        """Copies of the values, as they are optimised."""
        return {name: value.detach().clone() for name, value in self._values.items()}

    def put(self, values: Mapping[str, Shaped[Tensor, "..."]]) -> None:
        """Puts such values back."""
        with torch.no_grad():
            for name, value in self._values.items():
                value.copy_(values[name])
        self._write()

    def state(self) -> dict[str, Tensor]:
        """Values and the state of the optimiser, by names for a file."""
        found: dict[str, Tensor] = {}
        for name, value in self._values.items():
            found[f"{_VALUE}/{name}"] = value.detach()
            for key, moment in self._optimiser.state[value].items():
                found[f"{key}/{name}"] = moment
        return found

    def restore(self, state: Mapping[str, Shaped[Tensor, "..."]]) -> None:
        """Puts back what `state` gave."""
        self.put({name: state[f"{_VALUE}/{name}"] for name in self._values})
        for name, value in self._values.items():
            if f"{_STEP}/{name}" in state:
                moments: dict[str, Any] = {key: state[f"{key}/{name}"].to(value.device).clone() for key in _MOMENTS}
                self._optimiser.state[value] = {_STEP: state[f"{_STEP}/{name}"].clone(), **moments}

    def _write(self) -> None:
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                if self._values[name] is not parameter:
                    parameter.copy_(self._values[name])


def shares_of(module: nn.Module, rate: float) -> dict[str, float]:
    """Shares of the learning rate `rate` that parameters of a treated model get, by name, where they are not 1."""
    found: dict[str, float] = {}
    for name, part in module.named_modules():
        if isinstance(part, _Gate | _Pathway):
            weights = {key: value for key, value in part.learned.items() if key in _WEIGHTS}
            found |= {f"{name}.learned.{key}": share_of_weight(value.shape[-1]) for key, value in weights.items()}
        elif isinstance(part, ColumnWeight):
            found[f"{name}.root"] = max(1.0, _COLUMN_RATE / rate)
    return found


def share_of_weight(width: int) -> float:
    """That of a weight which multiplies states of this width."""
    return float(width**-0.5)


@contextmanager
def only(module: nn.Module, learned: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Within, only these parameters of the module require gradients, and it is in evaluation mode."""
    ids = {id(parameter) for parameter in learned.values()}
    required = {parameter: parameter.requires_grad for parameter in module.parameters()}
    training = {part: part.training for part in module.modules()}
    gradients = {parameter: parameter.grad for parameter in module.parameters()}
    module.eval()
    try:
        for parameter in required:
            parameter.requires_grad_(id(parameter) in ids)
        yield
    finally:
        for parameter, before in required.items():
            parameter.requires_grad_(before)
            parameter.grad = gradients[parameter]
        for part, before in training.items():
            part.training = before


def _long(parameter: nn.Parameter) -> nn.Parameter:
    kind = torch.promote_types(parameter.dtype, torch.float32)
    return parameter if parameter.dtype == kind else nn.Parameter(parameter.detach().to(kind))
