"""Finds the trunk of a model, its family, and the sites where attention can be treated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sinkscope._errors import OptionError
from sinkscope.attention import Shape
from sinkscope.treat._family import FAMILIES, Family

_HEAD_DIMS = ("head_dim", "attention_head_size")


@dataclass(frozen=True)
class Site:
    """One attention of a model.

    - `index`: of its block.
    - `name`: qualified name of the attention module in the model that is treated.
    - `shape`: residual width, heads, key-value heads, width of a head.
    - `attention`, `projection`, `value`, `branch`, `neurons`: modules, as `Family` says.
    """

    index: int
    name: str
    family: Family
    shape: Shape
    block: nn.Module
    attention: nn.Module
    projection: nn.Module
    value: nn.Module
    branch: nn.Module
    neurons: nn.Module

    @property
    def device(self) -> torch.device:
        """Where the attention's weights are."""
        return next(self.attention.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the block computes in: that of its first weight which is no quantised number."""
        kinds = (p.dtype for p in self.block.parameters())
        return next((kind for kind in kinds if kind.is_floating_point and kind.itemsize > 1), torch.float32)


@dataclass(frozen=True)
class Anatomy:
    """Where the parts of a model are.

    - `trunk`, `trunk_name`: the model without its head, and its qualified name in the model ("" for the model itself).
    - `sites`: one per block, in order.
    - `embeddings`, `final_norm`: as `Family` says.
    - `prefix`: roles of the tokens in front of the patches.
    """

    family: Family
    trunk: nn.Module
    trunk_name: str
    sites: tuple[Site, ...]
    embeddings: nn.Module
    final_norm: nn.Module | None

    @property
    def prefix(self) -> tuple[str, ...]:
        return self.family.prefix(self.trunk)


def supported() -> str:
    """The families in words."""
    return ", ".join(f"{family.title} ({family.library})" for family in FAMILIES)


def anatomy_of(model: nn.Module) -> Anatomy:
    """The anatomy of a model of a known family.

    **Raises:** `OptionError` that lists the families, for models that hold none or several of them, or one with a part
    that treatments do not know.
    """
    if hasattr(model, "_orig_mod"):
        raise OptionError("a compiled model", "the model itself", "treat it first, then call torch.compile")
    found = list(_trunks(model))
    kind = type(model).__name__
    if not found:
        raise OptionError(
            f"{kind} is of no family that can be treated",
            f"one of {supported()}",
            "load such a model, or its vision part",
        )
    if len(found) > 1:
        names = ", ".join(f"{name or 'itself'} ({family.name})" for family, name, _ in found)
        raise OptionError(f"{kind} holds {len(found)} models: {names}", "one of them", "treat one with inplace=True")
    family, name, trunk = found[0]
    norm = None if family.final_norm is None else _part(trunk, family.final_norm, family)
    blocks = _part(trunk, family.blocks, family)
    prefix = f"{name}." if name else ""
    sites = tuple(
        _site(family, f"{prefix}{family.blocks}.{index}", index, block) for index, block in enumerate(blocks.children())
    )
    return Anatomy(family, trunk, name, sites, _part(trunk, family.embeddings, family), norm)


def _trunks(model: nn.Module) -> Iterator[tuple[Family, str, nn.Module]]:
    for name, module in model.named_modules():
        for family in FAMILIES:
            for cls in type(module).__mro__:
                if cls.__name__ in family.trunks and cls.__module__.startswith(f"{family.library}."):
                    yield family, name, module
                    break


def _site(family: Family, block_name: str, index: int, block: nn.Module) -> Site:
    attention: Any = _part(block, family.attention, family)
    name = f"{block_name}.{family.attention}"
    parts = {part: _part(block, getattr(family, part), family) for part in ("projection", "value", "branch")}
    problem = _problem(family, block, attention)
    if problem is not None:
        raise OptionError(f"{name} {problem}", f"plain attention as in {supported()}", "build the model without it")
    head_dim = next(int(getattr(attention, key)) for key in _HEAD_DIMS if hasattr(attention, key))
    heads = input_width(parts["projection"]) // head_dim
    kv_heads = heads // int(getattr(attention, "num_key_value_groups", 1))
    shape = Shape(input_width(parts["value"]), heads, kv_heads, head_dim)
    return Site(index, name, family, shape, block, attention, neurons=_first(block, family.neurons, family), **parts)


def _problem(family: Family, block: nn.Module, attention: Any) -> str | None:
    """What stands in the way of a treatment."""
    if type(attention).__name__ not in family.attentions:
        return f"is {type(attention).__name__}"
    if getattr(block, "crossattention", None) is not None:
        return "stands beside cross-attention"
    if any(p.is_meta for p in attention.parameters()):
        return "has weights that are not in memory"
    if family.library == "transformers":
        used = attention.config._attn_implementation
        if used not in ("sdpa", "eager", "sinkscope"):
            return f"runs the attention implementation {used!r}, not sdpa or eager"
    return None


def input_width(projection: Any) -> int:
    """Columns that a projection takes: of nn.Linear, or of GPT-2's Conv1D, which stores its weight transposed."""
    if hasattr(projection, "in_features"):
        return int(projection.in_features)
    return int(projection.nx)


def _first(root: nn.Module, paths: tuple[str, ...], family: Family) -> nn.Module:
    there = {name for name, _ in root.named_modules()}
    return _part(root, next((path for path in paths if path in there), paths[0]), family)


def _part(root: nn.Module, path: str, family: Family) -> nn.Module:
    try:
        return root.get_submodule(path)
    except AttributeError:
        raise OptionError(
            f"{type(root).__name__} has no {path}",
            f"a model built as {family.title} of {family.library}",
            f"one of {supported()}",
        ) from None
