"""Tiny treated models, inputs for them, and a short tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sinkscope import treat
from sinkscope.models import Batch, Model, load, make_inputs
from sinkscope.train.tuning import OnStep, Tuned, TuneOptions, tune
from sinkscope.treat import Treatment
from tests.treat._models import example, model

INPUTS, STEPS = 23, 13
SHORT: dict[str, Any] = {"steps": STEPS, "batch_size": 5, "evaluate_every": 4, "checkpoint_every": 3, "held_out": 0.2}


def base(family: str) -> Model:
    """An untouched model."""
    return load(model(family))


def treated(family: str, *treatments: Treatment, probe_seed: int = 7) -> Model:
    """A treated copy of it."""
    return treat(base(family), treatments, probe=example(family, 3, probe_seed))


def short(
    made: Model,
    x: Any,
    objective: Any = "distill",
    *,
    out: Path | None = None,
    on_step: OnStep | None = None,
    labels: Sequence[int] | None = None,
    teacher: Model | None = None,
    **options: Any,
) -> Tuned:
    """A short tuning on tensors, or on what make_inputs takes."""
    inputs = make_inputs(made, x)
    chosen = TuneOptions(objective, **{**SHORT, **options})
    return tune(made, inputs, chosen, out=out, on_step=on_step, labels=labels, teacher=teacher)


def values(made: Model) -> dict[str, Tensor]:
    """Copies of what was added."""
    return {name: value.detach().clone() for name, value in treat.added(made).items()}


def one_batch(made: Model, x: Any) -> Batch:
    """All inputs as one batch."""
    return next(make_inputs(made, x, batch_size=INPUTS).batches())
