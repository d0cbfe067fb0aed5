"""What a family of models is to the tests: a tiny random model, an example, and an independent reference."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from tests._reference import ReferenceLayer, visible_keys

MAIN = "main"


@dataclass(frozen=True)
class Example:
    """Arguments of the forward, and the valid tokens of each sequence that attends to itself."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    valid: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, dtype: torch.dtype) -> Example:
        """The same with floating point arguments in `dtype`."""

        def cast(x: Any) -> Any:
            return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

        kwargs = {name: cast(x) for name, x in self.kwargs.items()}
        return Example(tuple(cast(x) for x in self.args), kwargs, self.valid)

    def row(self, b: int) -> Example:
        """Row b alone. Every tensor argument has the batch first."""

        def pick(x: Any) -> Any:
            return x[b : b + 1] if isinstance(x, Tensor) else x

        kwargs = {name: pick(x) for name, x in self.kwargs.items()}
        return Example(tuple(map(pick, self.args)), kwargs, {name: x[b : b + 1] for name, x in self.valid.items()})


@dataclass(frozen=True)
class Site:
    """Where the independent program finds a self-attention call. Names are relative to the block.

    - `value`: the linear layer that makes values, or a function of the attention module and its arguments.
    - `weights`: a function of the attention module, its arguments and its output.
    - `dropout`: instead of `weights`, the dropout module that eager attention sends its weights through.
    - `sink_column`: take the result of the last softmax, which has one column more than the weights.
    """

    block: str
    attention: str
    projection: str | None
    value: str | Callable[[nn.Module, tuple[Any, ...]], Tensor]
    heads: int
    weights: Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Tensor] | None = None
    dropout: str | None = None
    sink_column: bool = False
    layer_scale: str | None = None
    transposed: bool = False
    causal: bool = False
    window: int | None = None
    stream: str = MAIN

    def of_layer(self, number: int, **changes: Any) -> Site:
        """The site in that layer, where the block's name has a {} for the number, with fields changed."""
        return replace(self, **{"block": self.block.format(number), **changes})


@dataclass(frozen=True)
class Family:
    """A kind of model.

    - `how`: how the reference is obtained.
    - `build`: the float32 model in evaluation mode, the same at every call.
    - `example`: for a batch size; row b is the same in every batch.
    - `layers`: what the independent program sees in the float64 copy, self-attention calls in order.
    - `kinds`: of all calls, in order.
    - `bitwise`: with capture the same kernels run as without.
    """

    name: str
    how: str
    build: Callable[[], nn.Module]
    example: Callable[[int], Example]
    layers: Callable[[nn.Module, Example], list[ReferenceLayer]]
    kinds: tuple[str, ...]
    route: str = "fused"
    bitwise: bool = True

    def reference(self, batch: int) -> list[ReferenceLayer]:
        """The reference of the example, computed once."""
        return _reference(self, batch)

    def __hash__(self) -> int:
        return hash(self.name)


@cache
def _reference(family: Family, batch: int) -> list[ReferenceLayer]:
    with torch.no_grad():
        return family.layers(copy.deepcopy(family.build()).double(), family.example(batch).to(torch.float64))


@contextmanager
def exact_softmax() -> Iterator[list[Tensor]]:
    """Results of torch.nn.functional.softmax; kept in float64, which eager attention often leaves for float32."""
    softmax, results = torch.nn.functional.softmax, []

    def listening(x: Tensor, dim: int, **_dtype: Any) -> Tensor:
        results.append(softmax(x, dim))
        return results[-1]

    with patch("torch.nn.functional.softmax", listening):
        yield results


def observe(model: nn.Module, example: Example, sites: list[Site]) -> list[ReferenceLayer]:
    """Run the eager float64 model with plain module hooks at the sites, and read the layers off them.

    A block that runs several times is named by as many sites.
    """
    hidden: defaultdict[str, list[Tensor]] = defaultdict(list)
    inputs: defaultdict[str, list[tuple[Any, ...]]] = defaultdict(list)
    weights: defaultdict[str, list[Tensor]] = defaultdict(list)
    handles = []
    for site in {site.block: site for site in sites}.values():
        block = model.get_submodule(site.block)
        attention = block.get_submodule(site.attention)

        def keep_hidden(_m: Any, args: Any, kwargs: Any, *, key: str = site.block) -> None:
            hidden[key].append(_first(args, kwargs))

        def keep_input(_m: Any, args: Any, kwargs: Any, *, key: str = site.block) -> None:
            inputs[key].append(args or (_first(args, kwargs),))

        def keep_weights(module: Any, args: Any, kwargs: Any, output: Any, *, site: Site = site) -> None:
            assert site.weights is not None
            found = site.weights(module, args, kwargs, output)
            if site.sink_column:
                assert torch.equal(results[-1][..., :-1], found)
                found = results[-1]
            weights[site.block].append(found)

        def keep_dropped(_m: Any, args: Any, *, key: str = site.block) -> None:
            weights[key].append(args[0])

        handles.append(block.register_forward_pre_hook(keep_hidden, with_kwargs=True))
        handles.append(attention.register_forward_pre_hook(keep_input, with_kwargs=True))
        if site.dropout is not None:
            handles.append(block.get_submodule(site.dropout).register_forward_pre_hook(keep_dropped))
        else:
            handles.append(attention.register_forward_hook(keep_weights, with_kwargs=True))
    with exact_softmax() as results:
        model(*example.args, **example.kwargs)
    for handle in handles:
        handle.remove()
    layers = []
    for site in sites:
        seen = (found[site.block].pop(0) for found in (hidden, inputs, weights))
        layers.append(_layer(model, example, site, *seen))  # type: ignore[arg-type]
    return layers


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x: Tensor = args[0] if args else kwargs["hidden_states"]
    return x


def _layer(
    model: nn.Module, example: Example, site: Site, hidden: Tensor, inputs: tuple[Any, ...], weights: Tensor
) -> ReferenceLayer:
    block = model.get_submodule(site.block)
    attention = block.get_submodule(site.attention)
    made = site.value(attention, inputs) if callable(site.value) else block.get_submodule(site.value)(inputs[0])
    projection = None if site.projection is None else _parameter(block, site.projection)
    width = made.shape[-1] if projection is None else projection.shape[0 if site.transposed else 1]
    dim = width // site.heads
    values = made.unflatten(-1, (-1, dim)).transpose(1, 2)
    values = values.repeat_interleave(site.heads // values.shape[1], 1)
    extra = weights.shape[-1] - values.shape[2]
    values = torch.cat([values, values.new_zeros(*values.shape[:2], extra, dim)], 2)
    valid = example.valid[site.stream]
    return ReferenceLayer(
        weights=weights.detach(),
        values=values.detach(),
        visible=visible_keys(valid, site.causal, site.window),
        valid=valid,
        projection=None if projection is None else projection.mT if site.transposed else projection,
        layer_scale=None if site.layer_scale is None else _parameter(block, site.layer_scale),
        hidden=hidden.detach(),
    )


def _parameter(module: nn.Module, name: str) -> Tensor:
    return module.get_parameter(name).detach()


def randomised(model: nn.Module, seed: int = 7, gain: float = 1.6) -> nn.Module:
    """Draw every parameter anew: attention peaked enough for sinks, norms and layer scales far from trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim >= 2:
                p.copy_(noise * gain / p[0].numel() ** 0.5)
            elif name.endswith("weight"):
                p.copy_(1 + 0.2 * noise)
            elif "gamma" in name or "lambda" in name:
                p.copy_(0.6 + 0.3 * noise)
            else:
                p.copy_(0.3 * noise)
    return model.eval()


def noise(*shape: int, seed: int = 11) -> Tensor:
    """Standard normal numbers; row b depends on b alone, whatever the number of rows."""
    rows = [torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed + b)) for b in range(shape[0])]
    return torch.stack(rows)


def token_ids(batch: int, tokens: int, vocabulary: int = 97, first: int | None = None) -> Tensor:
    """Random ids from 5 on; row b depends on b alone."""
    rows = [
        torch.randint(5, vocabulary, (tokens,), generator=torch.Generator().manual_seed(100 + b)) for b in range(batch)
    ]
    ids = torch.stack(rows)
    if first is not None:
        ids[:, 0] = first
    return ids


def padded_mask(batch: int, tokens: int, side: str) -> Tensor:
    """1 for tokens and 0 for padding, by a different length in every row; row 0 is full."""
    mask = torch.ones(batch, tokens, dtype=torch.long)
    for b in range(1, batch):
        padding = (3 * b) % (tokens - 11) + 1
        if side == "right":
            mask[b, tokens - padding :] = 0
        else:
            mask[b, :padding] = 0
    return mask
