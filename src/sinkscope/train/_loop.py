"""Training of one toy network, with its signatures on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from sinkscope.tasks import Network, Recipe, Task, TaskBatch
from sinkscope.train._options import RunOptions
from sinkscope.train._signatures import HEAD_COLUMNS, head_table, probe_batch

EVALUATION_SEED = 1
EVALUATION_TOKENS = 2**15
MOST_EVALUATION_INPUTS = 1024
LEAST_EVALUATION_INPUTS = 64

DIVERGED = 10.0
"""A loss above so many times the first one, or none at all, ends a run as diverged."""

PROBES_PER_DECADE = 10

CURVE_COLUMNS = ("step", "loss", "error_linf", *HEAD_COLUMNS)
"""Columns of the curves of one run."""

_DRAWN_AT_ONCE = 4096
_STEPS_BETWEEN_EVALUATIONS = 20

OnStep = Callable[[int], None]


@dataclass(frozen=True)
class Result:
    """How a run has ended.

    - `steps`: updates made, fewer than asked for when it stopped early or diverged.
    - `loss`, `error_linf`: on held-out inputs, the same for every seed; None when diverged.
    - `solved`: by the task's criterion; never when diverged.
    - `diverged`: the training loss became NaN or more than DIVERGED times the first one.
    - `seconds`: of wall clock time.
    """

    steps: int
    loss: float | None
    error_linf: float | None
    solved: bool
    diverged: bool
    seconds: float


@dataclass(frozen=True)
class Trained:
    """A run that has ended: `heads` as `head_table` gives it for the last weights, `curves` the same at every probed
    step with `step`, `loss` and `error_linf` (held out) in front.
    """

    options: RunOptions
    network: Network
    result: Result
    heads: pd.DataFrame
    curves: pd.DataFrame


def train(options: RunOptions, on_step: OnStep | None = None) -> Trained:
    """Train one network, on one thread, so that equal options give equal weights.

    With `stop_error` in the recipe the run ends at the first step whose training batch is below it, provided that the
    task's criterion holds on the held-out inputs. Signatures are taken at steps 0, 1, 2, ..., about PROBES_PER_DECADE
    per decade, and at the end.

    **Arguments:**

    - `on_step`: called with the number of steps done, after every step.

    **Returns:** the run, also when it diverged: then without signatures of the last weights.

    **Raises:** `OptionError` when the network cannot be built.
    """
    with one_thread():
        return _Run(options).train(on_step)


def probe_steps(total: int) -> set[int]:
    """Steps at which signatures are taken, on a logarithmic scale, the first and the last included."""
    decades = math.log10(total)
    count = math.ceil(decades * PROBES_PER_DECADE)
    return {0, total, *(round(10 ** (decades * i / count)) for i in range(count))}


@contextmanager
def one_thread() -> Iterator[None]:
    """Tensors are this small: more threads cost more than they give, and the order of sums would depend on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Run:
    def __init__(self, options: RunOptions) -> None:
        self.options, self.task = options, options.task
        self.network = Network(options.network, seed=options.seed)
        self.probe = probe_batch(self.task)
        self.held_out = held_out_batch(options)
        self.curves: list[pd.DataFrame] = []
        self.limit = math.inf

    def train(self, on_step: OnStep | None) -> Trained:
        began = time.perf_counter()
        steps, diverged = self._steps(on_step or (lambda _: None))
        loss, error = self._evaluate()
        diverged = diverged or self._is_off(loss)
        if not diverged:
            self._look(steps)
        curves = pd.concat(self.curves, ignore_index=True) if self.curves else pd.DataFrame(columns=list(CURVE_COLUMNS))
        last = curves.iloc[:0] if diverged else curves[curves["step"] == steps]
        result = Result(
            steps,
            None if diverged else loss,
            None if diverged else error,
            not diverged and self.task.solved(loss, error),
            diverged,
            time.perf_counter() - began,
        )
        heads = last[list(HEAD_COLUMNS)].reset_index(drop=True)
        return Trained(self.options, self.network, result, heads, curves)

    def _steps(self, on_step: OnStep) -> tuple[int, bool]:
        """Train; how many updates were made, and whether the run diverged."""
        recipe, network, task = self.options.recipe, self.network, self.task
        optimizer = _optimizer(recipe, network)
        batches = _batches(task, self.options.seed, recipe.batch)
        probed = probe_steps(recipe.steps) - {recipe.steps}
        evaluated = -_STEPS_BETWEEN_EVALUATIONS
        for step in range(recipe.steps):
            batch = next(batches)
            outputs = network(batch.inputs)
            loss = task.loss(outputs, batch)
            value = loss.item()
            if self._is_off(value):
                return step, True
            if step == 0:
                self.limit = DIVERGED * value
            if recipe.stop_error is not None and step - evaluated >= _STEPS_BETWEEN_EVALUATIONS:
                if task.error_linf(outputs.detach(), batch) < recipe.stop_error:
                    evaluated = step
                    if task.solved(*self._evaluate()):
                        return step, False
            if step in probed:
                self._look(step)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
            optimizer.step()
            on_step(step + 1)
        return recipe.steps, False

    def _is_off(self, loss: float) -> bool:
        return not math.isfinite(loss) or loss > self.limit

    def _look(self, step: int) -> None:
        """Add the signatures of the network as it is to the curves."""
        loss, error = self._evaluate()
        curve = head_table(self.network, self.probe)
        for place, (name, value) in enumerate((("step", step), ("loss", loss), ("error_linf", error))):
            curve.insert(place, name, value)
        self.curves.append(curve)

    def _evaluate(self) -> tuple[float, float]:
        """Loss and largest error on the held-out inputs."""
        with torch.no_grad():
            outputs = self.network(self.held_out.inputs)
            loss = self.task.loss(outputs, self.held_out)
            return loss.item(), self.task.error_linf(outputs, self.held_out).item()


def held_out_batch(options: RunOptions) -> TaskBatch:
    """The inputs on which a run is judged: EVALUATION_TOKENS tokens or so, the same for every seed of the run."""
    inputs = max(LEAST_EVALUATION_INPUTS, min(EVALUATION_TOKENS // options.network.tokens, MOST_EVALUATION_INPUTS))
    return next(options.task.stream(EVALUATION_SEED, inputs, split="evaluation"))


def _batches(task: Task, seed: int, size: int) -> Iterator[TaskBatch]:
    """Training batches, cut from large ones: to draw a small batch takes as long as to train on it."""
    several = max(1, _DRAWN_AT_ONCE // size)
    for drawn in task.stream(seed, several * size):
        for start in range(0, several * size, size):
            yield _rows(drawn, slice(start, start + size)) if several > 1 else drawn


def _rows(batch: TaskBatch, rows: slice) -> TaskBatch:
    parts = {field.name: getattr(batch, field.name) for field in fields(batch)}
    cut: dict[str, Any] = {name: part[rows] if isinstance(part, Tensor) else part for name, part in parts.items()}
    return TaskBatch(**cut)


def _optimizer(recipe: Recipe, network: Network) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
        )
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True)
