"""Follows an attention output to the matrix product that projects it, and on to the layer scale."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from sinkscope.capture._ops import MATMULS, aten

_SUMS = (aten.add, aten.add_)
_FACTORS = (aten.mul, aten.mul_, aten.div, aten.div_)
_SCALED_SUMS = (aten.addcmul, aten.addcmul_)


def storage_of(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor, the same for its views."""
    address: int = tensor.untyped_storage()._cdata
    return address


class Follower:
    """Tells the listener of the output projection of a call, or why its heads' writes cannot be told.

    - `on_projection(call, x, weight)`: the one matrix product that reads the attention output;
    - `on_scaled(call, factor)`: a parameter that multiplies its result, one factor per residual dimension;
    - `on_gap(call, reason)`: the output is changed, has other readers, or what is added to the residual stream is no
      fixed linear function of it.

    Results are followed by storage, through views and copies. Followed tensors are kept alive until `forget`, so that
    a freed address cannot be mistaken for one of them.
    """

    def __init__(self, listener: Any) -> None:
        self._listener = listener
        self._outputs: dict[int, tuple[Any, Tensor]] = {}
        self._read: dict[int, tuple[Any, Tensor]] = {}
        self._projected: dict[int, tuple[Any, Tensor]] = {}

    def __bool__(self) -> bool:
        return bool(self._outputs or self._read or self._projected)

    def follow(self, call: Any, out: Tensor) -> None:
        """Look for the projection of `out` on behalf of `call`."""
        self._outputs[storage_of(out)] = (call, out)

    def forget(self) -> None:
        """Stop following everything."""
        for followed in (self._outputs, self._read, self._projected):
            followed.clear()

    def copied(self, source: Any, result: Tensor) -> None:
        """`result` holds the values of `source`."""
        old, new = storage_of(source), storage_of(result)
        for followed in (self._outputs, self._read, self._projected):
            if old != new and old in followed:
                followed[new] = (followed[old][0], result)

    def observe(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Look at an operation that has run, whatever it is but a copy."""
        changed = {storage_of(tensor) for tensor in _mutated(func, args, kwargs)}
        for storage in changed:
            call = self._call_of_output(storage)
            if call is not None:
                self._give_up(call, f"the attention output is changed in place by {func.overloadpacket}")
        made = {storage_of(tensor) for tensor in _tensors((result,))} - changed
        at = MATMULS.get(func)
        projects = at is not None and self._project(args[at], self._weight(args[at + 1]), result)
        for place, tensor in enumerate(_tensors((args, kwargs))):
            storage = storage_of(tensor)
            if storage in made or (projects and place == at):
                continue  # a view
            call = self._call_of_output(storage)
            if call is not None and storage in self._outputs:
                self._give_up(call, f"the attention output goes through {func.overloadpacket} before a projection")
            elif call is not None:
                reader = "two matrix products" if at is not None else f"{func.overloadpacket} beside its projection"
                self._give_up(call, f"the attention output is read by {reader}")
            elif storage in self._projected:
                self._after(self._projected[storage][0], tensor, func.overloadpacket, args, result)

    def _call_of_output(self, storage: int) -> Any:
        followed = self._outputs.get(storage) or self._read.get(storage)
        return None if followed is None else followed[0]

    def _project(self, x: Tensor, weight: Tensor | None, result: Tensor) -> bool:
        storage = storage_of(x)
        if weight is None or storage not in self._outputs:
            return False
        call = self._outputs[storage][0]
        for key in [key for key, (other, _) in self._outputs.items() if other is call]:
            self._read[key] = self._outputs.pop(key)
        self._projected[storage_of(result)] = (call, result)
        with _disable_current_modes():  # other captures around this one need not see it look
            self._listener.on_projection(call, x, weight)
        return True

    def _weight(self, factor: Tensor) -> Tensor | None:
        """The matrix by which every row is multiplied, None where it may differ from one input to the next."""
        if factor.dim() == 2:
            return factor
        shared = factor.shape[0] == 1 or factor.stride(0) == 0
        return factor[0] if shared and self._listener.is_parameter(factor) else None

    def _after(self, call: Any, projected: Tensor, packet: Any, args: tuple[Any, ...], result: Any) -> None:
        """What happens to the projected output on its way into the residual stream."""
        others = [value for value in args if value is not projected]
        if packet in _SUMS:
            width = projected.shape[-1]
            added = others[0] if others else None
            if isinstance(added, Tensor) and _is_vector(added, width) and self._listener.is_parameter(added):
                self._projected[storage_of(result)] = (call, result)  # the projection's bias
            else:
                self._drop(call)
        elif packet in _FACTORS or (packet in _SCALED_SUMS and projected is not args[0]):
            self._factor(call, projected, others[-1], packet)
            self._projected[storage_of(result)] = (call, result)
            if packet in _SCALED_SUMS or call.projection is None:
                self._drop(call)
        elif self._listener.is_inside(call):
            self._give_up(call, f"{packet} follows the projection inside the attention module")
        else:
            self._drop(call)

    def _factor(self, call: Any, projected: Tensor, factor: Any, packet: Any) -> None:
        if not isinstance(factor, Tensor) or factor.numel() == 1 or factor.shape[-1] == 1:
            return  # the same for all dimensions of a token: no ratio depends on it
        is_scale = _is_vector(factor, projected.shape[-1]) and self._listener.is_parameter(factor)
        if is_scale and packet not in (aten.div, aten.div_):
            self._listener.on_scaled(call, factor)
        else:
            self._give_up(call, "the projected output is multiplied by a factor that is no parameter")

    def _give_up(self, call: Any, reason: str) -> None:
        self._listener.on_gap(call, reason)
        self._drop(call)

    def _drop(self, call: Any) -> None:
        for followed in (self._outputs, self._read, self._projected):
            for key in [key for key, (other, _) in followed.items() if other is call]:
                del followed[key]


def _is_vector(tensor: Tensor, width: int) -> bool:
    return tensor.shape[-1:] == (width,) and tensor.numel() == width


@cache
def _writes(func: Any) -> tuple[tuple[int, str], ...]:
    arguments = enumerate(func._schema.arguments)
    return tuple((i, a.name) for i, a in arguments if a.alias_info is not None and a.alias_info.is_write)


def _mutated(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for place, name in _writes(func):
        yield from _tensors((args[place] if place < len(args) else kwargs.get(name),))


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple | dict):
            yield from _tensors(value)
