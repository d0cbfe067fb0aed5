"""Tokens that a treatment has put behind those of the input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from torch.nn.functional import pad

from sinkscope.models._types import Batch, Role, TokenLayout

APPENDED = "sinkscope_registers"
"""Name of the module in a treated model whose `roles` tell what the sequence gets at its end."""


class Appended:
    """Tells batches of the tokens that the model appends to their sequences."""

    def __init__(self, module: nn.Module) -> None:
        found: list[Any] = [part for name, part in module.named_modules() if name.split(".")[-1] == APPENDED]
        self._roles: tuple[Role, ...] = found[0].roles if found else ()

    @property
    def count(self) -> int:
        """How many."""
        return len(self._roles)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with layouts and valid tokens of the sequence that attention sees."""
        if not self._roles:
            return batch
        layouts = tuple(None if layout is None else self._longer(layout) for layout in batch.layouts)
        valid = None if batch.valid is None else pad(batch.valid, (0, len(self._roles)), value=True)
        return replace(batch, layouts=layouts, valid=valid)

    def _longer(self, layout: TokenLayout) -> TokenLayout:
        nowhere = (None,) * len(self._roles)
        texts = None if layout.texts is None else layout.texts + tuple(f"[{role}]" for role in self._roles)
        return TokenLayout(layout.roles + self._roles, layout.rows + nowhere, layout.cols + nowhere, texts)
