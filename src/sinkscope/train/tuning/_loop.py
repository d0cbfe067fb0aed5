"""Steps of the optimiser, with what is held out measured on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Shaped
from torch import Tensor

from sinkscope._errors import NumericsError
from sinkscope.attention import common_mode_penalty
from sinkscope.train._loop import DIVERGED
from sinkscope.train.tuning._learned import Learned
from sinkscope.train.tuning._objectives import Objective, Terms
from sinkscope.train.tuning._options import TuneOptions
from sinkscope.train.tuning._supply import Supply

COLUMNS = ("step", "loss", "held_out_loss", "grad_norm", "lr", "seconds")
"""Columns of `tuning.parquet`. Row s is about the model after s updates: `loss` and `grad_norm` (before clipping) on
the batch of the next update, `held_out_loss` where it was measured, `lr` of the next update, `seconds` of tuning since
the start."""


_BATCHES = 10
"""Divergence is judged by the mean loss of so many batches, and by every evaluation."""


@dataclass(frozen=True)
class Step:
    """Told after every update.

    - `step`: updates made; `steps`: of how many.
    - `loss`: on the batch of this update, before it.
    - `held_out_loss`: the last one measured.
    - `grad_norm`: before clipping.
    - `lr`: of this update.
    - `seconds`: of tuning since the start, interruptions left out.
    """

    step: int
    steps: int
    loss: float
    held_out_loss: float
    grad_norm: float
    lr: float
    seconds: float


OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class Held:
    """What was measured on the held-out inputs.

    - `accuracy`: share of inputs whose class was the first choice; None where there are no classes.
    """

    loss: float
    accuracy: float | None = None


@dataclass
class Progress:
    """How far tuning has come.

    - `step`: updates made.
    - `rows`: of the table, one per column of COLUMNS, None where nothing was measured.
    - `first`, `best`, `last`: what was held out, before tuning, at its best, and when last measured.
    - `kept_step`: updates behind the best.
    - `diverged`: whether tuning was stopped for that.
    - `seconds`: of tuning until the last interruption.
    """

    step: int = 0
    rows: list[list[float | None]] = field(default_factory=list)
    first: Held | None = None
    best: Held | None = None
    last: Held | None = None
    kept_step: int = 0
    diverged: bool = False
    seconds: float = 0.0


class Store(Protocol):
    """Where checkpoints are."""

    def read(self) -> tuple[Progress, Mapping[str, Tensor]] | None:
        """What was written last, with tensors by name; None if nothing was."""
        ...

    def write(self, progress: Progress, tensors: Mapping[str, Shaped[Tensor, "..."]]) -> None:
        """Replaces it."""
        ...


class Loop:
    """Tunes parameters by an objective.

    - `penalised`: outputs of the attention branches, if the common-mode penalty is added; filled by forward passes.
    """

    def __init__(
        self,
        objective: Objective,
        learned: Learned,
        supply: Supply,
        options: TuneOptions,
        *,
        store: Store | None,
        penalised: list[Tensor] | None = None,
    ) -> None:
        self._objective, self._supply, self._options = objective, supply, options
        self._store, self._penalised = store, penalised
        self._learned = learned
        self._kept: dict[str, Tensor] = learned.values()
        self._whole = True

    def run(self, on_step: OnStep | None = None) -> Progress:
        """Tunes, from the last checkpoint on if there is one. The last values are left in the parameters, or those of
        the best evaluation when the loss diverged.

        **Raises:** `NumericsError` when the loss is no number before anything was tuned.
        """
        self._progress = self._resume()
        self._began = time.perf_counter() - self._progress.seconds
        try:
            if not self._done():
                self._steps(on_step or (lambda _: None))
        except BaseException:
            if self._whole:  # else the last checkpoint stands
                self._save()
            raise
        self._progress.seconds = time.perf_counter() - self._began
        if self._progress.diverged:
            self._learned.put(self._kept)
        self._save()
        return self._progress

    def _done(self) -> bool:
        return self._progress.diverged or len(self._progress.rows) > self._options.steps

    def _steps(self, on_step: OnStep) -> None:
        progress, options = self._progress, self._options
        batches = self._supply.train(options.steps, progress.step)
        for step in range(progress.step, options.steps):
            if step % options.checkpoint_every == 0:
                self._save()
            held = self._evaluate(step) if step % options.evaluate_every == 0 else None
            if progress.diverged:
                return
            terms = self._objective(next(batches))
            loss = terms.loss.item()
            if self._is_off(self._lately(loss)):
                progress.diverged = True
                return
            norm = self._learned.gradients(self._penalty(terms))
            if not math.isfinite(norm):
                progress.diverged = True
                return
            self._whole = False
            # The penalty, where there is one, is no rounding.
            learns = loss > self._objective.rounding or self._penalised is not None
            rate = options.rate(step) if learns else 0.0
            self._learned.step(rate)
            seconds = time.perf_counter() - self._began
            progress.rows.append([step, loss, None if held is None else held.loss, norm, rate, seconds])
            progress.step, progress.seconds = step + 1, seconds
            self._whole = True
            assert progress.last is not None
            on_step(Step(step + 1, options.steps, loss, progress.last.loss, norm, rate, seconds))
        held = self._evaluate(options.steps)
        if not progress.diverged:
            seconds = time.perf_counter() - self._began
            progress.rows.append([options.steps, None, held.loss, None, None, seconds])

    def _penalty(self, terms: Terms) -> Tensor:
        if self._penalised is None:
            return terms.loss
        return terms.loss + self._options.common_mode * common_mode_penalty(self._penalised)

    def _evaluate(self, step: int) -> Held:
        progress = self._progress
        held = measure(self._objective, self._supply)
        if progress.first is None:
            if not math.isfinite(held.loss):
                raise NumericsError(
                    f"a loss of {held.loss} before anything was tuned",
                    "a number",
                    "check the inputs, and take --dtype float32 for a model in half precision",
                )
            progress.first = held
        progress.diverged = self._is_off(held.loss)
        progress.last = held
        if progress.best is None or held.loss < progress.best.loss:
            progress.best, progress.kept_step, self._kept = held, step, self._learned.values()
        return held

    def _is_off(self, loss: float) -> bool:
        progress = self._progress
        assert progress.first is not None
        batch = (progress.rows[0][1] if progress.rows else None) or 0.0
        return not math.isfinite(loss) or loss > max(DIVERGED * max(progress.first.loss, batch), self._objective.floor)

    def _lately(self, loss: float) -> float:
        """The mean with those of the batches before: one input can be far off by itself."""
        before = [row[1] for row in self._progress.rows[1 - _BATCHES :]]
        return sum((value for value in before if value is not None), loss) / (len(before) + 1)

    def _resume(self) -> Progress:
        read = None if self._store is None else self._store.read()
        if read is None:
            return Progress()
        progress, tensors = read
        kept = {name.removeprefix("kept/"): value for name, value in tensors.items() if name.startswith("kept/")}
        self._kept = kept
        self._learned.restore(tensors)
        if progress.diverged:
            self._learned.put(kept)
        return progress

    def _save(self) -> None:
        if self._store is not None:
            kept = {f"kept/{name}": value for name, value in self._kept.items()}
            self._store.write(self._progress, {**self._learned.state(), **kept})


def measure(objective: Objective, supply: Supply) -> Held:
    """The loss on the held-out inputs."""
    sums = weights = hits = 0.0
    classes = False
    with torch.no_grad():
        for drawn in supply.evaluate():
            terms: Terms = objective(drawn)
            sums += float(terms.sums.double().sum())
            weights += float(terms.weights.double().sum())
            if terms.hits is not None:
                classes, hits = True, hits + float(terms.hits.sum())
    return Held(sums / weights, hits / weights if classes else None)


def plain(progress: Progress) -> dict[str, Any]:
    """In JSON's types, numbers exact."""
    return {
        **vars(progress),
        **{name: None if held is None else vars(held) for name, held in _helds(progress).items()},
    }


def from_plain(content: Mapping[str, Any]) -> Progress:
    """What `plain` gave."""
    helds = {name: None if content[name] is None else Held(**content[name]) for name in ("first", "best", "last")}
    return Progress(**{**content, **helds})


def _helds(progress: Progress) -> dict[str, Held | None]:
    return {"first": progress.first, "best": progress.best, "last": progress.last}
