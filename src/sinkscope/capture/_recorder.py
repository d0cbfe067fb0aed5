"""A dispatch mode that recognises attention in the stream of operations of a model's own forward."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from functools import cache
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sinkscope.capture._ops import COMPOSITES, COPIES, FUSED, MATMULS, SOFTMAX, FusedArguments, aten, unseen_attention


class _Sort(Enum):
    """What an operation is to the recorder."""

    OTHER = auto()
    COMPOSITE = auto()
    FUSED = auto()
    SOFTMAX = auto()
    PRODUCT = auto()
    MATMUL = auto()
    COPY = auto()
    UNSEEN = auto()


@cache
def _sort(func: Any) -> _Sort:
    for sort, members in (
        (_Sort.COMPOSITE, COMPOSITES),
        (_Sort.FUSED, FUSED),
        (_Sort.SOFTMAX, SOFTMAX),
        (_Sort.PRODUCT, {aten.bmm.default}),
        (_Sort.MATMUL, MATMULS),
        (_Sort.COPY, COPIES),
    ):
        if func in members:
            return sort
    return _Sort.UNSEEN if unseen_attention(func.name()) else _Sort.OTHER


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves __init_subclass__ untyped
    """Passes every operation on unchanged and reports the four that matter.

    - `on_fused(arguments, out, lse)` after a fused attention kernel;
    - `on_weights(logits, weights, v, out)` after a product of softmax weights with values;
    - `on_projection(call, x, weight)` after the matrix product that takes the output of a followed call;
    - `on_scaled(call, factor)` after a vector factor on that product's result.

    Results are followed by storage, through views and copies. Followed tensors are kept alive until `forget`, so that
    a freed address cannot be mistaken for one of them.
    """

    def __init__(self, listener: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self._listener = listener
        self._paused = False
        self._softmax: dict[int, tuple[Tensor, Tensor]] = {}
        self._outputs: dict[int, tuple[Any, Tensor]] = {}
        self._projected: dict[int, tuple[Any, Tensor]] = {}
        self.unseen: dict[str, str] = {}

    def follow(self, call: Any, out: Tensor) -> None:
        """Look for the projection of `out` on behalf of `call`."""
        self._outputs[_storage(out)] = (call, out)

    def forget(self) -> None:
        """Stop following everything."""
        self._softmax.clear()
        self._outputs.clear()
        self._projected.clear()

    def paused(self, work: Callable[[], None]) -> None:
        """Run `work` without recording it."""
        self._paused = True
        try:
            work()
        finally:
            self._paused = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Compiled code runs as plain Python under a capture, so the compiler need not be imported to step aside."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        sort = _sort(func)
        if self._paused or (sort is _Sort.OTHER and not self._outputs and not self._projected):
            return func(*args, **kwargs) if kwargs else func(*args)
        kwargs = kwargs or {}
        if sort is _Sort.COMPOSITE:
            with self:
                opened = func.decompose(*args, **kwargs)
            if opened is not NotImplemented:
                return opened
        result = func(*args, **kwargs)
        match sort:
            case _Sort.FUSED:
                self._fused(FUSED[func](args, kwargs), result)
            case _Sort.SOFTMAX:
                if result.dim() >= 3 and args[1] in (-1, result.dim() - 1):
                    self._softmax[_storage(result)] = (args[0], result)
            case _Sort.PRODUCT:
                self._product(args[0], args[1], result)
            case _Sort.MATMUL:
                at = MATMULS[func]
                self._projection(args[at], args[at + 1], result)
            case _Sort.COPY:
                self._copy(args[0], result)
            case _Sort.UNSEEN:
                self.unseen[func.name()] = self._listener.where()
            case _Sort.OTHER:
                self._elementwise(func, args)
        return result

    def _fused(self, arguments: FusedArguments, result: tuple[Tensor, ...]) -> None:
        out, lse = result[0], result[1]
        self.paused(lambda: self._listener.on_fused(arguments, out, lse))

    def _product(self, left: Tensor, right: Tensor, result: Tensor) -> None:
        if self._softmax and _storage(left) in self._softmax:
            logits, _ = self._softmax.pop(_storage(left))
            self.paused(lambda: self._listener.on_weights(logits, left, right, result))

    def _projection(self, x: Tensor, weight: Tensor, result: Tensor) -> None:
        if not self._outputs:
            return
        followed = self._outputs.pop(_storage(x), None)
        if followed is None:
            return
        call, _ = followed
        self.paused(lambda: self._listener.on_projection(call, x, weight))
        self._projected[_storage(result)] = (call, result)

    def _copy(self, source: Any, result: Tensor) -> None:
        old, new = _storage(source), _storage(result)
        if old != new and old in self._softmax:
            self._softmax[new] = (self._softmax[old][0], result)
        if old != new and old in self._outputs:
            self._outputs[new] = (self._outputs[old][0], result)

    def _elementwise(self, func: Any, args: tuple[Any, ...]) -> None:
        if not args or not isinstance(args[0], Tensor):
            return
        packet = func.overloadpacket
        if self._outputs and packet.__name__.endswith("_") and func._schema.is_mutable:
            followed = self._outputs.pop(_storage(args[0]), None)
            if followed is not None:
                self._listener.on_changed(followed[0], str(packet))
                return
        if self._projected and packet in (aten.mul, aten.mul_, aten.add, aten.add_):
            for this, other in (args[:2], args[1::-1]):
                if isinstance(this, Tensor) and _storage(this) in self._projected:
                    call, _ = self._projected.pop(_storage(this))
                    scales = packet in (aten.mul, aten.mul_) and isinstance(other, Tensor)
                    if scales and other.numel() == other.shape[-1] == this.shape[-1]:
                        self._listener.on_scaled(call, other)
                    return
