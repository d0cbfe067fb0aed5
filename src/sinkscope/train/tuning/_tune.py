"""Tunes what treatments have added to a model, everything else frozen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from torch import Tensor

from sinkscope._errors import InputError, MissingExtraError, OptionError
from sinkscope.artifact import replacing
from sinkscope.models import Inputs, Model
from sinkscope.models._labels import labels_of
from sinkscope.train.tuning._checkpoint import FOLDER, Checkpoint, open_checkpoints
from sinkscope.train.tuning._learned import Learned, only, shares_of
from sinkscope.train.tuning._loop import COLUMNS, Held, Loop, OnStep, Progress, measure
from sinkscope.train.tuning._objectives import Distill, NextToken, Objective, OwnHead, Probe, own_classes
from sinkscope.train.tuning._options import TuneOptions
from sinkscope.train.tuning._supply import Supply, make_supply
from sinkscope.train.tuning._teacher import untouched
from sinkscope.train.tuning._tuned import Tuned
from sinkscope.treat import GlobalPathway, added, branch_outputs, save, treatments_of
from sinkscope.treat._files import _added_state, _identity
from sinkscope.treat._record import require_record

TABLE, PROBE, FIGURES = "tuning.parquet", "probe.safetensors", "figures"


def tune(
    model: Model,
    inputs: Inputs,
    options: TuneOptions,
    *,
    teacher: Model | None = None,
    labels: Sequence[int] | None = None,
    out: str | Path | None = None,
    on_step: OnStep | None = None,
) -> Tuned:
    """Tunes the treatments of a model.

    Everything is frozen but `sinkscope.treat.added(model)`: the model's own weights are bit for bit the same
    afterwards, and parameters require gradients as before. The model runs in evaluation mode, without dropout. On one
    thread the result depends on nothing but the arguments. Inputs come in epochs, each in an order of its own.

    A treatment that leaves the outputs unchanged at the start has a distillation loss of 0 there (to rounding), so that
    `distill` has nothing to teach it: it keeps a model on course whose treatment changes outputs.

    **Arguments:**

    - `model`: treated by `sinkscope.treat`; changed in place.
    - `inputs`: from `sinkscope.models.make_inputs` for this model. Those that can be read one by one are drawn anew for
      every batch, and prepared inputs are kept up to 256 MiB; batches of an iterable stay together and are held in
      memory, and `held_out` is then a share of the batches.
    - `options`: what is minimised, and how.
    - `teacher`: the model whose final tokens are the aim of `distill`, and the reference of the other objectives; by
      default the untouched one, without a second copy of its weights.
    - `labels`: class of every input in their order, for `task`; by default the column `label` of the dataset.
    - `out`: a folder for checkpoints, `tuning.parquet` with COLUMNS, `figures/loss.svg` and `.png`, the probe if there
      is one, and at the end the treatment, as `sinkscope.treat.save` writes it. Where it holds checkpoints of the same
      tuning, this goes on from the last one and ends as if it had never been interrupted.
    - `on_step`: told after every update.

    **Returns:** the tuned model, and how it went. It is no error when the loss diverges: tuning stops, and the values
    of the best evaluation are put back.

    **Raises:** `OptionError` for a model that is not treated, treatments without parameters, and objectives that the
    model cannot have; `InputError` for less than two inputs and for missing labels; `ArtifactError` when `out` holds
    another tuning, naming what differs; `NumericsError` when the loss is no number to begin with.
    """
    out = None if out is None else Path(out)
    learned = added(model)
    if not learned:
        names = ", ".join(treatment.name for treatment in treatments_of(model))
        raise OptionError(
            f"{names}: nothing to tune",
            "a treatment with parameters, such as a gate or registers",
            "leave tuning out, or add such a treatment",
        )
    if teacher is not None and teacher.module is model.module:
        raise OptionError("the model as its own teacher", "another one", "leave teacher out for the untouched model")
    supply = make_supply(inputs, options.batch_size, options.held_out, options.seed)
    reference = untouched(model) if teacher is None else teacher
    with ExitStack() as stack:
        stack.enter_context(only(model.module, learned))
        stack.enter_context(only(reference.module, {}))
        task = _Task.of(model, reference, inputs, supply, labels) if options.objective == "task" else None
        stores = _stores(model, inputs, options, teacher, task, out)
        penalised = None
        if any(isinstance(treatment, GlobalPathway) for treatment in treatments_of(model)):
            penalised = stack.enter_context(branch_outputs(model.module))
        objective = stack.enter_context(_objective(options, model, reference, task))
        shares = shares_of(model.module, options.lr)
        loop = Loop(
            objective,
            Learned({**learned, **objective.learned}, {**shares, **objective.shares}, options),
            supply,
            options,
            store=stores.get("state"),
            penalised=penalised,
        )
        progress = loop.run(on_step)
        compared = _reference(options, reference, task, supply, stores)
    held = progress.best if progress.diverged else progress.last
    assert held is not None and progress.first is not None
    probe = {name.removeprefix("probe."): value.detach() for name, value in objective.learned.items()}
    kept_step = progress.kept_step if progress.diverged else progress.step
    note = f"tuned for {kept_step} steps with the objective {options.objective}"
    tuned = Tuned(
        model=replace(model, notes=(*model.notes, note)),
        options=options,
        steps=progress.step,
        kept_step=kept_step,
        diverged=progress.diverged,
        loss_before=progress.first.loss,
        loss_after=held.loss,
        reference_loss=compared.loss,
        accuracy_before=progress.first.accuracy,
        accuracy_after=held.accuracy,
        reference_accuracy=compared.accuracy,
        inputs=supply.count,
        held_out_inputs=supply.held_out_count,
        left_out=supply.left_out,
        parameters=sum(parameter.numel() for parameter in learned.values()),
        seconds=progress.seconds,
        table=_table(progress),
        probe=probe or None,
        out=out,
    )
    tuned = replace(tuned, remarks=tuple(_remarks(tuned)))
    return tuned if out is None else _written(tuned, out)


@dataclass(frozen=True)
class _Task:
    """Classes to tell apart, by the model's own head or by a probe."""

    labels: Sequence[int]
    classes: int
    own: bool

    @classmethod
    def of(cls, model: Model, reference: Model, inputs: Inputs, supply: Supply, labels: Sequence[int] | None) -> _Task:
        """**Raises:** `InputError` without labels, or with some that the model's head does not have."""
        given = labels_of(inputs) if labels is None else labels
        count = supply.source.rows(range(len(supply.source)))
        if given is None:
            raise InputError(
                "inputs without labels, and the objective task",
                "a dataset of pictures with a column label of whole numbers, or labels",
                "take the objective distill, or in Python pass labels=",
            )
        if len(given) != count or min(given) < 0:
            raise InputError(
                f"{len(given)} labels from {min(given, default=0)} on, and {count} inputs",
                "a whole number from 0 on for each",
                "pass one label per input, in their order",
            )
        own = own_classes(reference, next(supply.evaluate()).batch)
        if own is not None and max(given) >= own:
            raise InputError(
                f"the label {max(given)} for {model.reference}, which tells {own} classes apart",
                f"labels from 0 to {own - 1}",
                "take the labels the model was trained with, or a model without a head, which gets a probe",
            )
        return cls(given, max(given) + 1 if own is None else own, own is not None)

    def objective(self, model: Model) -> Objective:
        """Of the model, with a probe of its own."""
        kind = OwnHead if self.own else Probe
        return kind(model, self.labels, self.classes)


def _objective(options: TuneOptions, model: Model, reference: Model, task: _Task | None) -> Objective:
    if options.objective == "distill":
        return Distill(model, reference)
    return NextToken(model) if task is None else task.objective(model)


def _reference(
    options: TuneOptions, reference: Model, task: _Task | None, supply: Supply, stores: Mapping[str, Checkpoint]
) -> Held:
    """The loss that the untouched model has."""
    if options.objective == "distill":
        return Held(0.0)
    with NextToken(reference) if task is None else task.objective(reference) as objective:
        if not objective.learned:
            return measure(objective, supply)
        learned = Learned(objective.learned, objective.shares, options)
        progress = Loop(objective, learned, supply, options, store=stores.get("reference")).run()
    held = progress.best if progress.diverged else progress.last
    assert held is not None
    return held


def _stores(
    model: Model, inputs: Inputs, options: TuneOptions, teacher: Model | None, task: _Task | None, out: Path | None
) -> dict[str, Checkpoint]:
    if out is None:
        return {}
    record = require_record(model.module)
    asked = {name: value for name, value in options.plain().items() if name != "checkpoint_every"}
    given = {name: value for name, value in inputs.identity.items() if name not in ("location", "ignored_files")}
    about = {
        "options": asked,
        "treatments": {"treatments": [treatment.plain() for treatment in treatments_of(model)]},
        "model": _identity(model.module, record),
        "inputs": {f"inputs: {name}": value for name, value in given.items()},
        "teacher": None if teacher is None else teacher.weights_sha256(),
        "labels": None if task is None else hashlib.sha256(json.dumps(list(task.labels)).encode()).hexdigest(),
    }
    open_checkpoints(out / FOLDER, about)
    parameters = added(model)
    state = _added_state(model.module, record)
    buffers = {name: value for name, value in state.items() if name not in parameters}
    return {
        "state": Checkpoint(out / FOLDER / "state.safetensors", buffers),
        "reference": Checkpoint(out / FOLDER / "reference.safetensors", {}),
    }


def _table(progress: Progress) -> pd.DataFrame:
    table = pd.DataFrame(progress.rows, columns=list(COLUMNS))
    return table.astype({name: "int64" if name == "step" else "float64" for name in COLUMNS})


def _remarks(tuned: Tuned) -> list[str]:
    found = []
    if tuned.harmless_start:
        found.append(
            "The treatment leaves the outputs as they are to begin with, so distillation has nothing to teach it: "
            "take sinks away as well (remove-sinks; with --advise, --mask-sinks), or another objective."
        )
    if tuned.diverged:
        found.append(f"The loss diverged at step {tuned.steps}; the values of step {tuned.kept_step} are kept.")
    elif tuned.loss_after > tuned.loss_before and not tuned.harmless_start:
        found.append("The loss on held-out inputs has grown: take fewer steps, a smaller rate, or more inputs.")
    if tuned.left_out:
        found.append(f"{len(tuned.left_out)} inputs could not be read and are left out.")
    return found


def _written(tuned: Tuned, out: Path) -> Tuned:
    from safetensors.torch import save_file

    from sinkscope.train.tuning._figure import write_figure

    save(tuned.model, out)
    with replacing(out / TABLE) as path:
        tuned.table.to_parquet(path, index=False)
    if tuned.probe is not None:
        tensors: dict[str, Tensor] = {name: value.cpu().contiguous() for name, value in tuned.probe.items()}
        with replacing(out / PROBE) as path:
            save_file(tensors, path)
    try:
        write_figure(tuned, out / FIGURES)
    except MissingExtraError as error:
        return replace(tuned, remarks=(*tuned.remarks, f"No figures: {error.found}."))
    return tuned
