"""The attention operations PyTorch's dispatcher knows, and how to read their arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

aten = torch.ops.aten


@dataclass(frozen=True)
class FusedArguments:
    """Arguments of one fused attention operation in one form."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    causal: bool
    scale: float


def _arguments(mask_at: int | None, causal_at: int) -> Callable[[tuple[Any, ...], dict[str, Any]], FusedArguments]:
    def read(args: tuple[Any, ...], kwargs: dict[str, Any]) -> FusedArguments:
        def at(position: int | None, name: str, default: Any) -> Any:
            if position is not None and len(args) > position:
                return args[position]
            return kwargs.get(name, default)

        q, k, v = args[:3]
        mask = at(mask_at, "attn_bias", None)
        mask = kwargs.get("attn_mask") if mask is None else mask
        scale = kwargs.get("scale")
        scale = float(q.shape[-1]) ** -0.5 if scale is None else float(scale)
        return FusedArguments(q, k, v, mask, bool(at(causal_at, "is_causal", False)), scale)

    return read


FUSED: dict[Any, Callable[[tuple[Any, ...], dict[str, Any]], FusedArguments]] = {
    aten._scaled_dot_product_flash_attention_for_cpu.default: _arguments(None, 4),
    aten._scaled_dot_product_flash_attention.default: _arguments(None, 4),
    aten._scaled_dot_product_efficient_attention.default: _arguments(3, 6),
    aten._scaled_dot_product_cudnn_attention.default: _arguments(3, 6),
    aten._scaled_dot_product_fused_attention_overrideable.default: _arguments(3, 5),
}
"""Each returns (output, log-sum-exp, ...). The positions differ: see native_functions.yaml of PyTorch."""

SOFTMAX = frozenset({aten._softmax.default, aten._safe_softmax.default})
COPIES = frozenset(
    {
        aten.clone.default,
        aten._to_copy.default,
        aten._reshape_copy.default,
        aten.reshape.default,
        aten.contiguous.default,
        aten.to.dtype,
    }
)
"""Operations whose result holds the values of their first argument, whether it shares the storage or not."""
MATMULS = {aten.addmm.default: 1, aten.mm.default: 0, aten.bmm.default: 0}
"""Matrix products and the position of their left factor."""

COMPOSITES = frozenset(
    {
        aten.softmax.int,
        aten.scaled_dot_product_attention.default,
        aten._scaled_dot_product_attention_math.default,
    }
)
"""Operations that hold attention and reach a dispatch mode whole under inference mode: always opened up. Others, such
as linear, are opened only while a result is followed; that spares most of what watching costs."""


def is_composite(func: Any) -> bool:
    """Whether an operation is nothing but other operations. Under inference mode it reaches a dispatch mode whole."""
    if not isinstance(func, OpOverload):
        return False
    name: str = func.name()  # type: ignore[no-untyped-call]  # untyped in torch
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")


_PACKAGES = ("flash_attn", "xformers", "sage", "natten", "vllm", "flashinfer")
_NAMES = ("attention", "attn")


def unseen_attention(name: str) -> bool:
    """Whether an operation, none of the above, is an attention kernel whose inside cannot be read."""
    package, operation = name.lower().split("::", maxsplit=1) if "::" in name else ("", name.lower())
    if "backward" in operation or "bwd" in operation:
        return False
    return any(word in package for word in _PACKAGES) or any(word in operation for word in _NAMES)
