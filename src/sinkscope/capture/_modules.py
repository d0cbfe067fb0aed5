"""Which modules are attention modules, and which module is the residual block around one."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

_ATTENTION = re.compile(r"attention|attn|multihead", re.IGNORECASE)
_CROSS = re.compile(r"cross|encdec|encoder_attn", re.IGNORECASE)


def attention_modules(root: nn.Module) -> dict[str, nn.Module]:
    """Modules that are called attention by their class and hold no other such module, by qualified name.

    A module needs a weight matrix of its own: dropout or masking helpers named after attention do not count.
    """
    named = {name: module for name, module in root.named_modules() if _is_attention(module)}
    return {
        name: module
        for name, module in named.items()
        if not any(inner is not module and _is_attention(inner) for inner in module.modules())
    }


def _is_attention(module: nn.Module) -> bool:
    named = _ATTENTION.search(type(module).__name__) is not None
    return named and any(parameter.ndim >= 2 for parameter in module.parameters())


def looks_cross(name: str) -> bool:
    """Whether a qualified name says that the attention reads another sequence."""
    return _CROSS.search(name) is not None


def residual_blocks(root: nn.Module) -> frozenset[str]:
    """Names of modules that stand in a ModuleList or Sequential among others of their class: the stacked blocks."""
    return frozenset(_repeated_children(root))


def _repeated_children(root: nn.Module) -> Iterator[str]:
    for prefix, container in root.named_modules():
        if not isinstance(container, nn.ModuleList | nn.Sequential | nn.ModuleDict):
            continue
        classes = [type(child) for child in container.children()]
        for name, child in container.named_children():
            alone = len(classes) == 1
            if alone or classes.count(type(child)) > 1:
                yield f"{prefix}.{name}" if prefix else name
