"""The model as it was before its treatment."""

from __future__ import annotations

import copy
from dataclasses import replace

from sinkscope.models import Model
from sinkscope.treat import undo


def untouched(model: Model) -> Model:
    """The model without its treatments, which shares all weights with it: only modules are copied."""
    module = model.module
    shared = [*module.parameters(), *module.buffers()]
    return undo(replace(model, module=copy.deepcopy(module, {id(tensor): tensor for tensor in shared})))
