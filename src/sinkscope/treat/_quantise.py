"""Linear layers that compute with rounded weights and activations, simulated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sinkscope._errors import OptionError
from sinkscope.treat._treatment import Treatment

if TYPE_CHECKING:
    from sinkscope.treat._body import Body

Granularity = Literal["tensor", "channel", "token"]
_GRANULARITIES = ("tensor", "channel", "token")
_OPTIONS = "sinkscope_quantise"


@dataclass(frozen=True)
class Quantise(Treatment):
    """Weights and inputs of the linear layers in all blocks rounded to integers times a scale: x becomes
    s round(x / s), s = max |x| / (2^(bits - 1) - 1), symmetric around zero.

    Simulated: products are computed in the model's number type, nothing becomes smaller or faster, and weights stay as
    they are, so that `undo` is exact. Scales of activations are those of every call, so that one token with a massive
    activation makes all others of its call coarse; embeddings, norms, attention itself and the head are not rounded.
    Gradients pass as if nothing was rounded.

    - `bits`: 2 to 16.
    - `granularity`: what has a scale of its own. `tensor`: each weight and each input of a layer as a whole. `channel`:
      each output channel of a weight and each channel of an input. `token`: each output channel of a weight and each
      token of an input.

    **Raises:** `OptionError` for other values, and linear layers of other kinds.
    """

    bits: int = 8
    granularity: Granularity = "tensor"

    name: ClassVar[str] = "quantise"
    source: ClassVar[str] = "round to nearest, as in Xiao et al. 2022, arXiv:2211.10438, Eq. 1"

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 2 <= self.bits <= 16:
            raise OptionError(f"{self.name}: bits is {self.bits!r}", "a whole number from 2 to 16", "correct bits")
        if self.granularity not in _GRANULARITIES:
            raise OptionError(
                f"{self.name}: granularity is {self.granularity!r}", "tensor, channel or token", "correct granularity"
            )

    @property
    def harmless(self) -> bool:
        return False

    def install(self, body: Body) -> None:
        for site in body.anatomy.sites:
            for name, module in list(site.block.named_modules()):
                kind: Any = _kind(module)
                if kind is None:
                    continue
                derived = type(module) is not kind
                if derived:
                    raise OptionError(
                        f"{self.name}: block {site.index} has {name} of {type(module).__name__}",
                        f"{kind.__name__}, not rounded yet",
                        "undo other treatments, or load the model without quantisation",
                    )
                body.add(module, _OPTIONS, _Rounding(self))
                body.set(module, "__class__", _quantised(kind))


class _Rounding(nn.Module):
    """Rounds what one layer multiplies."""

    def __init__(self, options: Quantise) -> None:
        super().__init__()
        self.levels = 2 ** (options.bits - 1) - 1
        self.granularity = options.granularity

    def weight(self, weight: Float[Tensor, "*axes"], inputs: int) -> Float[Tensor, "*axes"]:
        """`inputs` is its axis of input channels."""
        return self._rounded(weight, None if self.granularity == "tensor" else (inputs,))

    def activations(self, x: Float[Tensor, "*batch tokens channels"]) -> Float[Tensor, "*batch tokens channels"]:
        shared = {"tensor": None, "channel": tuple(range(x.dim() - 1)), "token": (-1,)}[self.granularity]
        return self._rounded(x, shared)

    def _rounded(self, x: Tensor, shared: tuple[int, ...] | None) -> Tensor:
        """One scale along the axes `shared`, all of them by default."""
        exact = x.detach().to(torch.promote_types(x.dtype, torch.float32))
        largest = exact.abs().amax() if shared is None else exact.abs().amax(shared, keepdim=True)
        scale = (largest / self.levels).clamp(min=torch.finfo(exact.dtype).tiny)
        rounded = ((exact / scale).round() * scale).to(x.dtype)
        through: Tensor = x + (rounded - x.detach()) if x.requires_grad else rounded
        return through


@cache
def _quantised(kind: Any) -> type[nn.Module]:
    """A class of layers that round what they multiply; weights and names stay where they were."""
    forward = _linear if kind is nn.Linear else _conv1d
    return type(f"Quantised{kind.__name__}", (kind,), {"forward": forward, "__module__": __name__})


def __getattr__(name: str) -> Any:
    """Where pickle looks for the classes."""
    if name == "QuantisedLinear":
        return _quantised(nn.Linear)
    if name == "QuantisedConv1D":
        from transformers.pytorch_utils import Conv1D

        return _quantised(Conv1D)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _linear(self: Any, x: Float[Tensor, "*batch tokens inputs"]) -> Float[Tensor, "*batch tokens outputs"]:
    rounding: _Rounding = getattr(self, _OPTIONS)
    return nn.functional.linear(rounding.activations(x), rounding.weight(self.weight, 1), self.bias)


def _conv1d(self: Any, x: Float[Tensor, "*batch tokens inputs"]) -> Float[Tensor, "*batch tokens outputs"]:
    rounding: _Rounding = getattr(self, _OPTIONS)
    out: Tensor = rounding.activations(x) @ rounding.weight(self.weight, 0) + self.bias
    return out


def _kind(module: nn.Module) -> Any:
    """The layer that a module is, or is derived from; GPT-2 has its own, with transposed weights."""
    if isinstance(module, nn.Linear):
        return nn.Linear
    return next(
        (
            cls
            for cls in type(module).__mro__
            if cls.__module__.startswith("transformers.") and cls.__name__ == "Conv1D"
        ),
        None,
    )
