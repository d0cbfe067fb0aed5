"""Any model by reference, treated ones included."""

from __future__ import annotations

from typing import Any

from torch import nn

from sinkscope import models
from sinkscope._treated_reference import treated_folder
from sinkscope.models import Modality, Model
from sinkscope.models._placement import Placement


def load(
    reference: str | nn.Module,
    *,
    modality: Modality | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    device_map: Any = None,
    tp_plan: Any = None,
    trust_remote_code: bool = False,
) -> Model:
    """As [`sinkscope.models.load`][sinkscope.models.load], which tells of references and arguments; and treated models.

    `treated:FOLDER`, or just the folder, is what `sinkscope treat --out FOLDER` has written: the model that was treated
    is loaded by its own reference, in the number type it had, and its treatments are put into it.

    **Raises:** `ModelReferenceError`, `WeightsError`, `MissingExtraError`, `OptionError`, each with the next step;
    `WeightsError` also when the model has changed since it was treated.
    """
    placement = Placement(device, dtype, device_map, tp_plan, trust_remote_code)
    if isinstance(reference, str) and (folder := treated_folder(reference)) is not None:
        from sinkscope._treated import load_treated

        return load_treated(reference, folder, modality, placement)
    return models.load(
        reference,
        modality=modality,
        device=device,
        dtype=dtype,
        device_map=device_map,
        tp_plan=tp_plan,
        trust_remote_code=trust_remote_code,
    )
