"""Which heads the table of diseases and cures plants, which cures it tries, and how a cured model is judged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from _common import agreement, final, stacked
from torch import Tensor

import sinkscope
from sinkscope._errors import InputError
from sinkscope.models import Model, make_inputs
from sinkscope.tasks import Plan, Planted, plant_all
from sinkscope.train.tuning import TuneOptions, tune
from sinkscope.treat import (
    AttentionBias,
    AttentionTreatment,
    Gate,
    GlobalPathway,
    LearnedSink,
    Registers,
    RemoveSinks,
)

PLANTED, TUNED, JUDGED = 40, 256, 64
"""Inputs to plant with, to tune on, and to judge by: others each."""

TRIES = 12
"""Heads drawn for one cell until one is faithful."""


@dataclass(frozen=True)
class Subject:
    """A model to plant in.

    - `sink`, `at`: role and position of the token that is every planted head's sink.
    - `layers`: where a linear map can tell the content of this token (see `_yardstick_cases`).
    - `options`: of its inputs.
    """

    reference: str
    data: str
    sink: str
    at: int
    layers: tuple[int, ...]
    heads: int
    options: dict[str, Any]


SUBJECTS = {
    "minilm": Subject("zoo:minilm-l6", "text.txt", "sep", 31, (2, 3, 4, 5), 12, {"length": 32}),
    "dinov2": Subject(
        "zoo:dinov2-small-saliency",
        "cifar10-test.parquet",
        "cls",
        0,
        (7, 8, 9, 10, 11),
        6,
        {"size": 112, "kind": "dataset"},
    ),
}

DISEASES = {"nop": ("nop", 1.0), "adaptive nop": ("nop", 0.6), "bias": ("bias", 1.0), "broadcast": ("broadcast", 1.0)}
"""Mechanism, and share of the queries that park."""

CURES: dict[str, tuple[tuple[AttentionTreatment, ...], float]] = {
    "gate": ((Gate("headwise"),), 0.03),
    "learned sink": ((LearnedSink(),), 0.03),
    "attention bias": ((AttentionBias(),), 0.03),
    "registers": ((Registers(4),), 0.03),
    "registers, copies": ((Registers(4, like=0),), 0.03),
    "one copy, seen": ((Registers(1, like=0, weighed=False),), 0.003),
    "gate + registers": ((Gate("headwise"), Registers(4)), 0.03),
    "global pathway": ((GlobalPathway(),), 0.01),
}
"""Treatments, each put into the planted layer alone, and the learning rate; those of single treatments were
tried on a head that is in no table. Copies are of the sink's token; one that is seen has no logit of its own."""

ELSEWHERE = ("gate", "attention bias", "registers", "registers, copies")
"""Cures that are also put into another layer: a control with as many parameters."""


@dataclass(frozen=True)
class Patient:
    """A model with one planted head, and what it is tuned on and judged by."""

    planted: Planted
    tuned_on: Tensor
    judged_by: Tensor
    wanted: Tensor

    @property
    def place(self) -> tuple[int, int]:
        return self.planted.truth.layer, self.planted.truth.head


def inputs_of(model: Model, subject: Subject, data: Any) -> Tensor:
    """All that is needed, of shape (inputs, ...)."""
    count = PLANTED + TUNED + JUDGED
    supply = make_inputs(model, str(data / subject.data), limit=count, batch_size=64, **subject.options)
    tensor = stacked(supply)
    if len(tensor) < count:
        raise InputError(f"{len(tensor)} inputs", f"{count}", "give more data")
    return tensor


def patient(model: Model, subject: Subject, tensor: Tensor, disease: str, number: int) -> Patient:
    """A model with the disease in one head, drawn by number until the plant is faithful.

    **Raises:** `InputError` when none is.
    """
    mechanism, parked = DISEASES[disease]
    random = np.random.default_rng([list(DISEASES).index(disease), number])
    layer = subject.layers[number % len(subject.layers)]
    supply = make_inputs(model, tensor[:PLANTED], batch_size=PLANTED)
    for _ in range(TRIES):
        head, seed = int(random.integers(subject.heads)), int(random.integers(2**31))
        plan = Plan(layer, head, mechanism, subject.sink, 0.9, parked=parked, seed=seed)
        try:
            planted = plant_all(model, [plan], supply)
        except InputError:
            continue  # no strength makes this head look at the sink
        if planted.faithful:
            tuned_on, judged_by = tensor[PLANTED : PLANTED + TUNED], tensor[PLANTED + TUNED :]
            return Patient(planted, tuned_on, judged_by, final(planted.model, judged_by))
    raise InputError(f"no faithful {disease} in layer {layer}", "one", "raise TRIES")


def damage(model: Model, who: Patient, at: int) -> float:
    """Squared change of the final tokens but the sink, by their square, mean over the inputs that are judged."""
    others = torch.arange(who.wanted.shape[1]) != at
    rows = agreement(final(model, who.judged_by)[:, others], who.wanted[:, others])
    return float(np.mean([row["error"] for row in rows]))


def removed(who: Patient, subject: Subject, how: str) -> Model:
    """The planted model whose planted head has lost its sink."""
    model: Model = sinkscope.treat(who.planted.model, RemoveSinks(how, (subject.at,), heads=(who.place,)))  # type: ignore[arg-type]  # a Model or a module
    return model


def placed(treatment: AttentionTreatment, layer: int, at: int) -> AttentionTreatment:
    """For one layer, and with registers that are copies made like the sink."""
    if isinstance(treatment, Registers) and treatment.like is not None:
        treatment = replace(treatment, like=at)
    return replace(treatment, layers=(layer,))


def cured(
    broken: Model, who: Patient, subject: Subject, cure: str, steps: int, seed: int, rate: float | None = None
) -> tuple[Model, dict[str, Any]]:
    """The broken model with the cure, tuned to the final tokens of the planted one; and how tuning went."""
    name = cure.removesuffix(" elsewhere")
    layer = who.place[0]
    if name != cure:
        layer = layer + 1 if layer < max(subject.layers) else layer - 1
    treatments, own_rate = CURES[name]
    chosen = [placed(treatment, layer, subject.at) for treatment in treatments]
    model = sinkscope.treat(broken, chosen, probe=who.tuned_on[:8], seed=seed)
    options = TuneOptions(
        steps=steps, lr=rate or own_rate, batch_size=4, held_out=0.1, evaluate_every=steps, common_mode=0.0, seed=seed
    )
    tuned = tune(model, make_inputs(model, who.tuned_on), options, teacher=who.planted.model)
    return tuned.model, {
        "parameters": tuned.parameters,
        "tuning_before": tuned.loss_before,
        "tuning_after": tuned.loss_after,
        "diverged": tuned.diverged,
    }
