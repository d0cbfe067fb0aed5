"""How a tuning has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from sinkscope.models import Model
from sinkscope.train.tuning._options import TuneOptions

HARMLESS = 1e-6
"""A distillation loss below this, a thousandth in relative RMS, is no difference."""


@dataclass(frozen=True)
class Tuned:
    """A tuned model, and how well it went. Losses and accuracies are of the held-out inputs.

    - `model`: the one that was given, its treatments tuned.
    - `steps`: updates made, fewer than asked for when it diverged.
    - `kept_step`: updates behind the values that are in the model now: all of them, or after a divergence those of the
      best evaluation before it.
    - `diverged`: whether it was stopped since a loss was no number, or held out or over the last 10 batches more than
      10 times the first one: from 0.1 on for `distill`, which may start at 0, else from the loss of a guess on.
    - `loss_before`, `loss_after`: before the first update, and with the values in the model now.
    - `reference_loss`: of the untouched model; 0 for `distill`. With a probe, of the same probe on the untouched model,
      trained by the same steps.
    - `accuracy_before`, `accuracy_after`, `reference_accuracy`: share of inputs whose class is the first choice; None
      for other objectives.
    - `inputs`, `held_out_inputs`: how many are trained on, and not.
    - `left_out`: inputs that could not be read, name to reason.
    - `parameters`: how many numbers are tuned in the model.
    - `seconds`: interruptions left out.
    - `table`: with COLUMNS.
    - `probe`: `weight` and `bias` of the linear probe; None without one.
    - `out`: the folder it was written to.
    - `remarks`: what a reader should know, in sentences.
    """

    model: Model
    options: TuneOptions
    steps: int
    kept_step: int
    diverged: bool
    loss_before: float
    loss_after: float
    reference_loss: float
    inputs: int
    held_out_inputs: int
    parameters: int
    seconds: float
    table: pd.DataFrame
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    reference_accuracy: float | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    probe: Mapping[str, Float[Tensor, "..."]] | None = None
    out: Path | None = None
    remarks: tuple[str, ...] = ()

    @property
    def harmless_start(self) -> bool:
        """Whether the final tokens were those of the untouched model to begin with, so that distillation has nothing to
        teach."""
        return self.options.objective == "distill" and self.loss_before < HARMLESS

    def plain(self) -> dict[str, Any]:
        """All but the model, the table and the probe, in JSON's types."""
        others = ("model", "options", "table", "probe", "out", "left_out", "remarks")
        return {
            "options": self.options.plain(),
            **{each.name: getattr(self, each.name) for each in fields(self) if each.name not in others},
            "harmless_start": self.harmless_start,
            "left_out": dict(self.left_out),
            "remarks": list(self.remarks),
        }
