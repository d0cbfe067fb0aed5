"""The residual stream of a model while it runs: what its blocks read, and what the last one writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from sinkscope.capture import HIDDEN_BIAS, AttentionCall, capture
from sinkscope.models import Batch, Model

_NORM = re.compile(r"norm", re.IGNORECASE)


@dataclass(frozen=True)
class Stack:
    """The residual blocks of a model.

    - `blocks`: qualified names in the order of their first layer, with that layer.
    - `tokens_first`: whether hidden states are tokens x inputs x width instead of inputs x tokens x width.
    - `causal`: no query of any layer sees a later key.
    """

    blocks: Mapping[str, int]
    tokens_first: bool
    causal: bool


def find_stack(model: Model, batch: Batch, layers: Sequence[int]) -> Stack:
    """The blocks around self-attention of `layers`; layers in no block are left out.

    **Arguments:**

    - `batch`: one input, which the model is run on.
    """
    blocks: dict[str, int] = {}
    orders: list[bool] = []
    causal: list[bool] = []

    def on_call(call: AttentionCall) -> None:
        causal.append(call.kind == "self" and looks_back(call))
        if call.kind != "self" or call.layer not in layers or call.block_input is None or call.block == call.module:
            return
        blocks.setdefault(call.block, call.layer)
        orders.append(call.block_input[0] != 1)

    with capture(model.module, on_call):
        model.run(batch)
    ordered = dict(sorted(blocks.items(), key=lambda item: item[1]))
    return Stack(ordered, bool(orders) and all(orders), bool(causal) and all(causal))


def looks_back(call: AttentionCall) -> bool:
    """Whether no query of the first input sees a later key."""
    if call.causal:
        return True
    if call.visible is not None:
        return not bool(call.visible[0, 0].triu(1).any())
    return call.mask is not None and not bool((call.mask[0].expand(-1, *call.shape[2:]) > HIDDEN_BIAS).triu(1).any())


class ResidualStream:
    """Watches the blocks of `stack` while the context of `watching` is open.

    - `written`: what the last block of the last pass wrote; `normed`: after the norm that follows it over all tokens,
      None when none does.
    """

    def __init__(self, root: nn.Module, stack: Stack) -> None:
        self._root, self._stack = root, stack
        self.written: Float[Tensor, "inputs tokens width"] | None = None
        self.normed: Float[Tensor, "inputs tokens width"] | None = None
        self._last: Tensor | None = None

    @contextmanager
    def watching(self, on_input: Callable[[int, Float[Tensor, "inputs tokens width"]], None]) -> Iterator[None]:
        """`on_input` is given the layer of each block and what the block reads, before any norm."""
        modules = {name: self._root.get_submodule(name) for name in self._stack.blocks}
        inside = {inner for module in modules.values() for inner in module.modules()}
        with ExitStack() as hooks:
            for name, module in modules.items():
                entered = partial(self._entered, self._stack.blocks[name], on_input)
                hooks.callback(module.register_forward_pre_hook(entered, with_kwargs=True).remove)
            if modules:
                hooks.callback(list(modules.values())[-1].register_forward_hook(self._ended).remove)
            for module in self._root.modules():
                if module not in inside and _NORM.search(type(module).__name__):
                    hooks.callback(module.register_forward_hook(self._after_norm).remove)
            yield
        self.written = self.normed = self._last = None

    def _entered(
        self,
        layer: int,
        on_input: Callable[[int, Tensor], None],
        _module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.written = self.normed = self._last = None
        hidden = _hidden((*args, *kwargs.values()))
        if hidden is not None:
            on_input(layer, self._ordered(hidden))

    def _ended(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._last = _hidden(output)
        self.written = None if self._last is None else self._ordered(self._last)

    def _after_norm(self, _module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        last, given = self._last, args[0] if args else None
        if self.normed is not None or last is None or not isinstance(given, Tensor) or not isinstance(output, Tensor):
            return
        if given.numel() == last.numel() and given.untyped_storage().data_ptr() == last.untyped_storage().data_ptr():
            self.normed = self._ordered(output)

    def _ordered(self, hidden: Tensor) -> Float[Tensor, "inputs tokens width"]:
        if self._stack.tokens_first:
            return hidden.transpose(0, 1)
        return hidden.flatten(1, -2)  # tokens on a grid


def _hidden(output: Any) -> Tensor | None:
    """The first floating point tensor of three axes or more."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.dim() >= 3 else None
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return next((hidden for value in values if (hidden := _hidden(value)) is not None), None)
