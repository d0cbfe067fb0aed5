"""A learned sink logit in a pretrained model."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sinkscope import attention
from sinkscope._errors import OptionError
from sinkscope.attention import Attend, Parameters
from sinkscope.treat._anatomy import Site
from sinkscope.treat._column import ColumnPart, ColumnWeight
from sinkscope.treat._container import Part
from sinkscope.treat._treatment import AttentionTreatment


@dataclass(frozen=True)
class LearnedSink(AttentionTreatment):
    """A learned score b per head that every query weighs against the tokens: softmax([S, b]) without its last column.

    - `start`: None for b that starts 16 below the smallest log-normaliser of the head's rows on a probe, which is
      needed: the column then has at most 1e-7 of the attention, and outputs stay within 1e-5. What is learned is not b
      itself but its root, see `ColumnWeight`, so that gradients are not as small. A number is b's start, as published;
      b is then learned itself, and outputs change from the start.

    **Raises:** `OptionError` when `start` is no finite number.
    """

    start: float | None = None

    name: ClassVar[str] = "learned-sink"
    source: ClassVar[str] = "OpenAI 2025, gpt-oss, arXiv:2508.10925"

    def __post_init__(self) -> None:
        if self.start is not None and not isfinite(self.start):
            raise OptionError(f"learned-sink: start is {self.start!r}", "a finite number, or None", "correct start")

    @property
    def harmless(self) -> bool:
        return self.start is None

    @property
    def needs_probe(self) -> bool:
        return self.start is None

    @property
    def slot(self) -> str:
        return "form"

    def part(self, site: Site) -> Part:
        return _LearnedSink(self.start, site.shape.heads)


class _LearnedSink(ColumnPart):
    def __init__(self, start: float | None, heads: int) -> None:
        super().__init__()
        self.column = ColumnWeight(heads) if start is None else None
        self.sink = None if start is None else nn.Parameter(torch.full((heads,), float(start)))

    def logit(self) -> Float[Tensor, " heads"]:
        """b."""
        if self.column is not None:
            return self.column.logit()
        assert self.sink is not None
        return self.sink

    def core(self, call: Attend, x: Float[Tensor, "batch queries residual"]) -> tuple[attention.Form, Parameters]:
        return attention.LearnedSink(), {"sink": self.logit()}
