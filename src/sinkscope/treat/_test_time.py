"""Test-time registers: activations of register neurons moved to a token of their own, without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sinkscope._errors import OptionError
from sinkscope.attention import Attend, Form, KVBias, Parameters
from sinkscope.treat._anatomy import Site, input_width
from sinkscope.treat._container import Part
from sinkscope.treat._registers import check_count, require_kind
from sinkscope.treat._sequence import Appended, with_appended
from sinkscope.treat._treatment import AttentionTreatment

if TYPE_CHECKING:
    from sinkscope.treat._body import Body


@dataclass(frozen=True)
class TestTimeRegisters(AttentionTreatment):
    """Zero tokens behind those of the input, onto which the activations of given neurons are moved.

    For vision models, with whatever prefix, batches, and sequences of any length. In every picture the activation of
    largest magnitude of a neuron over all tokens, with its sign, is given to the new tokens; on all others, class token
    included, the neuron is set to 0. Neurons are found by `find_register_neurons`. Nothing is learned, and outputs
    change from the start; they keep their shape. Registers that the model has already are tokens like the others.

    - `neurons`: pairs of block and neuron of its MLP. None is a control: a token is added and nothing moved.
    - `count`: of new tokens; all get the same.
    - `fixed`: instead of tokens a fixed key and value per head, softmax([S, scale q.k']) [V; v'], with the neurons set
      to 0 everywhere. k' and v' are the means over the pictures of the probe, which is needed, of the new token's. They
      take the place of the form.

    **Raises:** `OptionError` for neurons that are no such pairs or that the model does not have, a count below 1, more
    than one token with `fixed`, `layers`, and models that are no vision models.
    """

    neurons: tuple[tuple[int, int], ...] = ()
    count: int = 1
    fixed: bool = False

    name: ClassVar[str] = "test-time-registers"
    source: ClassVar[str] = "Jiang, Dravid, Efros, Gandelsman 2025, arXiv:2506.08010"
    __test__: ClassVar[bool] = False  # pytest takes it for a test by its name

    def __post_init__(self) -> None:
        check_count(self.name, self.count)
        pairs = tuple(_pair(given) for given in self.neurons)
        if len(set(pairs)) < len(pairs):
            raise OptionError(f"{self.name}: a neuron twice", "each neuron once", "leave it out")
        if self.fixed and self.count > 1:
            raise OptionError(f"{self.name}: {self.count} fixed keys", "one", "leave count out")
        if self.layers is not None:
            raise OptionError(f"{self.name}: layers", "blocks given with their neurons", "leave layers out")
        object.__setattr__(self, "neurons", pairs)

    @property
    def harmless(self) -> bool:
        return False

    @property
    def needs_probe(self) -> bool:
        return self.fixed

    @property
    def slot(self) -> str:
        return "form" if self.fixed else "registers"

    def part(self, site: Site) -> Part:
        own = [neuron for layer, neuron in self.neurons if layer == site.index]
        return _Fixed(own, site) if self.fixed else _Shifting(own, self.count)

    def install(self, body: Body) -> None:
        require_kind(self.name, body.anatomy, ("vision",), "take Registers() or PrefixKV()")
        sites = body.anatomy.sites
        for layer, neuron in self.neurons:
            if layer >= len(sites):
                expected = f"blocks 0 to {len(sites) - 1}"
            elif neuron >= (width := input_width(sites[layer].neurons)):
                expected = f"neurons 0 to {width - 1} in block {layer}"
            else:
                continue
            raise OptionError(f"{self.name}: neuron {(layer, neuron)}", expected, "take neurons found in this model")
        super().install(body)
        first = sites[0]
        zeros = torch.zeros(self.count, first.shape.residual)
        (_Passing(zeros, body.container(first).parts["form"]) if self.fixed else Appended(zeros)).install(body)


def _pair(given: Any) -> tuple[int, int]:
    """A neuron, as given or as JSON returns it."""
    fits = isinstance(given, list | tuple) and len(given) == 2
    if not fits or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in given):
        raise OptionError(
            f"{TestTimeRegisters.name}: {given!r} as a neuron",
            "pairs of block and neuron, both from 0 on",
            "take those of find_register_neurons",
        )
    return given[0], given[1]


class _Shifting(Part):
    """Moves neurons of one block."""

    neurons: Tensor

    def __init__(self, neurons: list[int], count: int) -> None:
        super().__init__()
        self.count = count
        self.register_buffer("neurons", torch.tensor(sorted(neurons), dtype=torch.long))

    def attach(self, site: Site, body: Body) -> None:
        if len(self.neurons):
            body.hook(site.neurons.register_forward_pre_hook(self.shift))

    def enter(self, call: Attend, x: Float[Tensor, "batch queries residual"]) -> Attend:
        return with_appended(call, self.count)

    def shift(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook of the last layer of the MLP."""
        return self.shifted(args[0], self.count), *args[1:]

    def shifted(self, x: Float[Tensor, "batch tokens neurons"], count: int) -> Float[Tensor, "batch tokens neurons"]:
        """Activations, those of the neurons moved to the last `count` tokens."""
        moved = torch.zeros_like(x[..., self.neurons])
        if count:
            own = x[:, :-count, self.neurons]
            largest = own.gather(1, own.abs().argmax(1, keepdim=True))
            moved[:, -count:] = largest
        return x.index_copy(-1, self.neurons, moved)


class _Fixed(_Shifting):
    """A fixed key and value in the token's place, once a probe has shown them; until then the token."""

    key: Tensor
    value: Tensor

    def __init__(self, neurons: list[int], site: Site) -> None:
        super().__init__(neurons, 1)
        for name in ("key", "value"):
            self.register_buffer(name, torch.zeros(site.shape.kv_heads, site.shape.head_dim))
        self._seen: list[tuple[Tensor, Tensor]] = []

    def enter(self, call: Attend, x: Float[Tensor, "batch queries residual"]) -> Attend:
        return with_appended(call, 1) if self.observing else call

    def core(self, call: Attend, x: Float[Tensor, "batch queries residual"]) -> tuple[Form, Parameters] | None:
        return None if self.observing else (KVBias(), {"key": self.key, "value": self.value})

    def shift(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return self.shifted(args[0], int(self.observing)), *args[1:]

    def observe(self, call: Attend) -> None:
        self._seen += zip(call.k[:, :, -1].detach(), call.v[:, :, -1].detach(), strict=True)

    def settle(self) -> None:
        if self._seen:
            keys, values = (torch.stack(found).float().mean(0) for found in zip(*self._seen, strict=True))
            self.key.copy_(keys)
            self.value.copy_(values)
        self._seen = []


class _Passing(Appended):
    """A token that is there on the probe only."""

    def __init__(self, tokens: Float[Tensor, "count residual"], part: Part) -> None:
        super().__init__(tokens)
        self._part = (part,)  # in a tuple: it is no submodule

    @property
    def roles(self) -> tuple[Any, ...]:
        return super().roles if self._part[0].observing else ()
