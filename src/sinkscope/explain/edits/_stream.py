"""The residual blocks of a model while it runs: what they return is recorded, or put in their place."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from sinkscope.capture import AttentionCall, Calls

_NORM = re.compile(r"norm", re.IGNORECASE)


class Unfit(Exception):
    """A forward pass that does not go as the recorded one; another way of running it may."""


@dataclass
class Ran:
    """One run of a block in a forward pass.

    - `output`: what it returned; None where it was not to be kept.
    - `norm`: its output after the norm that follows it, None when none does.
    - `before`: calls by kind made in the pass before it.
    """

    name: str
    before: dict[str, int]
    output: Any = None
    norm: Tensor | None = None

    @property
    def hidden(self) -> Float[Tensor, "..."] | None:
        """The hidden states in the output: its first floating point tensor of three axes or more."""
        return _hidden(self.output)

    @property
    def stack(self) -> str:
        """The container of the block."""
        return self.name.rpartition(".")[0]


@dataclass
class Record:
    """One forward pass: its blocks in order, its calls, and in which run of a block each call was made."""

    ran: list[Ran] = field(default_factory=list)
    made: Counter[str] = field(default_factory=Counter)
    inside: dict[tuple[str, int], int | None] = field(default_factory=dict)
    result: Any = None

    def final(self, layer: int) -> int | None:
        """The last block whose hidden states are those of the tokens that self-attention of `layer` sees: of the same
        shape, and in a stack with or without cross attention as that layer is. None when the layer is in no block."""
        at = self.inside["self", layer]
        hidden = None if at is None else self.ran[at].hidden
        if at is None or hidden is None:
            return None
        crossing = {self.ran[i].stack for (kind, _), i in self.inside.items() if kind == "cross" and i is not None}

        def same(ran: Ran) -> bool:
            x = ran.hidden
            alike = (ran.stack in crossing) == (self.ran[at].stack in crossing)
            return alike and x is not None and x.shape == hidden.shape

        return max(i for i, ran in enumerate(self.ran) if i >= at and same(ran))


@dataclass(frozen=True)
class Tail:
    """How a pass takes up a recorded one: blocks before number `start` return what is in `record`; from then on
    arguments of blocks whose axis for the `size` inputs (`axis`, or else the first) has that length hold the inputs
    that `take` names."""

    record: Record
    start: int
    take: Int[Tensor, " rows"]
    size: int
    axis: int


class Stream:
    """Watches the blocks of `root`, their forward replaced while the context of `watching` is open."""

    def __init__(self, root: nn.Module, calls: Calls) -> None:
        self._root = root
        self._calls = calls
        self._depth = 0
        self._record = Record()
        self._tail: Tail | None = None
        self._keep: int | None = None

    @contextmanager
    def watching(self, blocks: Iterable[str]) -> Iterator[None]:
        """Watch the blocks of these names and those that stand in one container with them."""
        modules = _with_siblings(self._root, blocks)
        inside = {inner for module in modules.values() for inner in module.modules()}
        with ExitStack() as stack:
            for name, module in modules.items():
                stack.callback(_restored, module, vars(module).get("forward"))
                module.forward = self._watched(name, module.forward)
            for module in self._root.modules():
                if module not in inside and _NORM.search(type(module).__name__):
                    stack.callback(module.register_forward_hook(self._after_norm).remove)
            yield

    def run(self, forward: Callable[[], Any], tail: Tail | None = None, keep: int | None = None) -> Record:
        """Run a pass, taking up a recorded one under `tail`; of the outputs of blocks keep only that of number `keep`,
        all of them by default.

        **Raises:** `Unfit` when the blocks do not run in the recorded order.
        """
        self._record, self._tail, self._keep, self._depth = Record(), tail, keep, 0
        try:
            self._record.result = forward()
            return self._record
        finally:
            self._record, self._tail = Record(), None

    def on_call(self, call: AttentionCall) -> None:
        """Note a call of the pass that runs."""
        self._record.made[call.kind] += 1
        self._record.inside[call.kind, call.layer] = len(self._record.ran) - 1 if self._depth else None

    def _watched(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return original(*args, **kwargs)
            number, tail = len(self._record.ran), self._tail
            ran = Ran(name, dict(self._record.made))
            self._record.ran.append(ran)
            if tail is not None:
                known = tail.record.ran[number] if number < len(tail.record.ran) else None
                if known is None or known.name != name:
                    raise Unfit(f"{name} runs where it did not before")
                if number < tail.start:
                    return known.output
                if number == tail.start:
                    self._calls.begin_at(known.before)
                args, kwargs = _selected((args, kwargs), tail)
            self._depth += 1
            try:
                output = original(*args, **kwargs)
            finally:
                self._depth -= 1
            if self._keep is None or self._keep == number:
                ran.output = output
            return output

        return forward

    def _after_norm(self, _module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._depth or not self._record.ran or not args or not isinstance(output, Tensor):
            return
        last = self._record.ran[-1]
        hidden, given = last.hidden, args[0]
        if last.norm is None and hidden is not None and isinstance(given, Tensor) and given.numel() == hidden.numel():
            if given.untyped_storage().data_ptr() == hidden.untyped_storage().data_ptr():
                last.norm = output


def select(value: Any, take: Int[Tensor, " rows"], size: int, axis: int = 0) -> Any:
    """Tensors in `value`, however nested, with the inputs that `take` names along the axis for the `size` inputs."""
    if isinstance(value, Tensor):
        fits = [at for at in dict.fromkeys((axis, 0)) if value.dim() > at and value.shape[at] == size]
        wide = [at for at in fits if at == 0 or value.dim() > at + 1]
        return value.index_select(wide[0], take.to(value.device)) if wide else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(select(item, take, size, axis) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(select(item, take, size, axis) for item in value)
    if isinstance(value, Mapping) and type(value) is dict:
        return {name: select(item, take, size, axis) for name, item in value.items()}
    return value


def _selected(arguments: Any, tail: Tail) -> Any:
    return select(arguments, tail.take, tail.size, tail.axis)


def _with_siblings(root: nn.Module, blocks: Iterable[str]) -> dict[str, nn.Module]:
    modules: dict[str, nn.Module] = {}
    for name in blocks:
        container = root.get_submodule(name.rpartition(".")[0])
        stacked = isinstance(container, nn.ModuleList | nn.Sequential | nn.ModuleDict)
        siblings = [child for child, _ in container.named_children()] if stacked else [name.rpartition(".")[2]]
        for child in siblings:
            full = ".".join(filter(None, (name.rpartition(".")[0], child)))
            modules[full] = root.get_submodule(full)
    return modules


def _restored(module: nn.Module, forward: Any) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward


def _hidden(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.dim() >= 3 else None
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, list | tuple) else ()
    return next((hidden for value in values if (hidden := _hidden(value)) is not None), None)
