"""An input on which treatments set their starting values, and which shows whether the outputs are what they were."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence, Set
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sinkscope._errors import OptionError
from sinkscope.models import Batch, Model
from sinkscope.treat._starting import Starting
from sinkscope.treat._treatment import Treatment

Probe: TypeAlias = Tensor | tuple[Any, ...] | Mapping[str, Any] | Batch
"""The first argument of a model's forward, all of them, named ones, or a batch of `sinkscope.models.make_inputs`."""

TOLERANCE = 1e-5


def run(module: nn.Module, probe: Probe) -> list[Tensor]:
    """All floating point outputs of the module, in evaluation mode."""
    batch = _batch(probe)
    if "logits_to_keep" in inspect.signature(module.forward).parameters:
        batch = Batch(0, batch.names, batch.args, {"logits_to_keep": 0, **batch.kwargs})
    device = str(next(module.parameters()).device)
    out = Model("probe", module, "unknown", device).run(batch)
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def settle(module: nn.Module, probe: Probe, settled: Set[Starting]) -> None:
    """Lets the parts of a treated model set their starting values by the probe, but for those that have theirs."""
    parts = [part for part in module.modules() if isinstance(part, Starting) and part not in settled]
    for part in parts:
        part.observing = True
    try:
        run(module, probe)
    finally:
        for part in parts:
            part.observing = False
    for part in parts:
        part.settle()


def check_harmless(
    before: Sequence[Tensor], after: Sequence[Tensor], treatments: Sequence[Treatment], dtype: torch.dtype
) -> None:
    """Compares outputs on the probe. Half precision is allowed its own rounding.

    **Raises:** `OptionError` when they differ by more than 1e-5 of the largest output.
    """
    tolerance = max(TOLERANCE, 8 * torch.finfo(dtype).eps)
    change = output_change(before, after)
    if not change <= tolerance:
        names = ", ".join(treatment.name for treatment in treatments)
        raise OptionError(
            f"{names}: outputs on the probe change by {change:.2g} of the largest",
            f"{tolerance:.2g} or less, which these treatments promise",
            "report this with the model's name; without probe= the treatment is put in unchecked",
        )


def output_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest difference of outputs as a share of the largest output before, over all tensors.

    **Raises:** `OptionError` when shapes differ.
    """
    shapes = [tuple(out.shape) for out in before], [tuple(out.shape) for out in after]
    if shapes[0] != shapes[1]:
        raise OptionError(f"outputs of shapes {shapes[1]} on the probe", f"{shapes[0]} as before", "report this")
    changes = [
        float((new.double() - old.double()).abs().max() / old.double().abs().max().clamp(min=1e-30))
        for old, new in zip(before, after, strict=True)
        if old.numel()
    ]
    return max(changes, default=0.0, key=lambda change: float("inf") if change != change else change)


def _batch(probe: Probe) -> Batch:
    if isinstance(probe, Batch):
        return probe
    if isinstance(probe, Tensor):
        return Batch(0, ("probe",), (probe,))
    if isinstance(probe, Mapping):
        return Batch(0, ("probe",), (), probe)
    return Batch(0, ("probe",), probe)
