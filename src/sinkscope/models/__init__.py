"""Models by reference, their inputs, and the role of every token.

Names load on first use: listing the zoo needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sinkscope.models._inputs import make_inputs as make_inputs
    from sinkscope.models._load import load as load
    from sinkscope.models._model import Model as Model
    from sinkscope.models._types import (
        Batch as Batch,
        Inputs as Inputs,
        Modality as Modality,
        Role as Role,
        TokenLayout as TokenLayout,
    )
    from sinkscope.models._zoo import ZooModel as ZooModel, zoo_models as zoo_models

_HOMES = {
    "Batch": "_types",
    "Inputs": "_types",
    "Modality": "_types",
    "Model": "_model",
    "Role": "_types",
    "TokenLayout": "_types",
    "ZooModel": "_zoo",
    "load": "_load",
    "make_inputs": "_inputs",
    "zoo_models": "_zoo",
}

__all__ = [
    "Batch",
    "Inputs",
    "Modality",
    "Model",
    "Role",
    "TokenLayout",
    "ZooModel",
    "load",
    "make_inputs",
    "zoo_models",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sinkscope.models' has no attribute {name!r}")
    return getattr(import_module(f"sinkscope.models.{_HOMES[name]}"), name)
