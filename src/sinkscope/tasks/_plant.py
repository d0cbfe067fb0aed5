"""A known mechanism written into heads of a pretrained model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._errors import InputError, OptionError
from ..models import Batch, Inputs, Model
from ..models._quiet import quiet
from ._plant_others import NO_SINK, unread, without_sink
from ._plant_sinks import Sink, chosen_sink, marks, may_be, parked_at
from ._plant_states import States, merged, outputs, watched
from ._plant_truth import LEAST_INPUTS, SINK_MASS, Measured, Truth, checked_shares, measured
from ._plant_values import handing, write_energy
from ._plant_weights import HeadWeights, attention_layers, chosen_layer, norm_gains, ungrouped_copy

_CALIBRATION = 5 / 8
_GOOD = 0.05
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".h5", ".msgpack", ".gguf", ".onnx")
_TRUTH = "planted.json"


@dataclass(frozen=True)
class Plan:
    """One head to plant; fields as the arguments of `plant`. **Raises:** `OptionError` for what does not exist."""

    layer: int
    head: int
    mechanism: str
    sink: str = "auto"
    mass: float = 0.9
    shares: tuple[float, float, float] | None = None
    parked: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        checked_shares(self.mechanism, self.shares)
        for name in ("mass", "parked"):
            value = getattr(self, name)
            if not 0 < value <= 1:
                raise OptionError(f"{name} is {value}", "a share above 0, up to 1", f"correct {name}")


@dataclass(frozen=True)
class Planted:
    """A model with planted heads, and the truth about each."""

    model: Model
    truths: tuple[Truth, ...]

    @property
    def truth(self) -> Truth:
        """The truth about the first planted head."""
        return self.truths[0]

    @property
    def faithful(self) -> bool:
        """Whether every head is what was asked for; see `Truth.faithful`."""
        return all(truth.faithful for truth in self.truths)

    def save(self, folder: Path | str) -> Path:
        """Save as an ordinary checkpoint, with the model's tokenizer or picture preprocessing, and the truths in
        `planted.json`. Load it by the folder's path.
        """
        return _saved(self, Path(folder))


def plant(
    model: Model,
    layer: int,
    head: int,
    mechanism: str,
    *,
    inputs: Inputs,
    sink: str = "auto",
    mass: float = 0.9,
    shares: tuple[float, float, float] | None = None,
    parked: float = 1.0,
    seed: int = 0,
) -> Planted:
    """Write a mechanism into the weights of one attention head, on a copy of the model; nothing else changes.

    Works on transformers encoders and decoders with plain softmax attention: DINOv2, ViT, BERT, Llama and their kin.
    Where query heads share keys and values the copy first gets one key-value head per query head, which computes the
    same. The copy is an ordinary checkpoint: `Planted.save`.

    **Arguments:**

    - `mechanism`: what the head's sink hands out, u_s, against what other tokens hand out, E0 = mean |u_j|^2:
        - `nop`: nothing. `bias`: one vector with |u|^2 = E0. `broadcast`: a linear image of this input's x_s less its
          mean over inputs, mean |u_s|^2 = E0. `mixture`: these parts in the given `shares`;
        - `inert`: mass, but all the head writes lies in the direction that the rest of the network reads least; behind
          a LayerNorm that is the constant vector, which it removes;
        - `uniform`: all visible keys get the same weight; `diagonal`: tokens look at themselves; `dead`: values are 0.
    - `inputs`: 24 or more, in batches of equal shapes; on the first 5/8 the weights are fitted, on the others the truth
      is measured.
    - `sink`: `cls`, `register` (the first), `sep` (the last), `first` (token), `patch` or `word`: the one with most of
      some feature, chosen by `seed`; a `word` is not the first token of a causal model. `auto`: cls, else first.
    - `mass`: mean attention on the sink, over queries that park (on itself, for `diagonal`).
    - `shares`: silent, constant, content of a `mixture`.
    - `parked`: share of the queries that park at the sink, those with most along the first principal component of the
      attention's input; below 1 a `nop` is adaptive.
    - `seed`: of the feature, and of the constant.

    Values are fitted by weighted ridge regression (`_plant_values.handing`), and the ordinary tokens of a planted head
    write with the median energy of the layer's heads. How near all this comes is measured: see `Truth`. A head that
    misses is returned with `faithful` False: a sink whose content no linear map tells apart hands out none, and one
    that is a token like others cannot be silenced.

    **Raises:** `OptionError` for options that do not exist, `InputError` for too few inputs or inputs without that
    token, `CaptureError` for a model whose attention is of another kind.
    """
    return plant_all(model, [Plan(layer, head, mechanism, sink, mass, shares, parked, seed)], inputs)


def plant_all(model: Model, plans: Sequence[Plan], inputs: Inputs) -> Planted:
    """Plant several heads in one copy, at most one per layer, in one forward pass over the inputs.

    Each is fitted to, and measured on, what its layer reads with the heads of earlier layers planted; what comes later
    does not change that. `Truth.output_change` is that of all together. Arguments and errors as `plant`.
    """
    if not plans or len({plan.layer for plan in plans}) < len(plans):
        raise OptionError(
            f"{len(plans)} heads to plant in {len({plan.layer for plan in plans})} layers",
            "one or more, each in a layer of its own",
            "plant heads of one layer in copies of their own",
        )
    attention_layers(model.module)  # before anything is read or copied: a model that cannot be planted in is refused
    batch = merged(inputs)
    if len(batch.names) < LEAST_INPUTS:
        raise InputError(f"{len(batch.names)} inputs to plant with", f"{LEAST_INPUTS} or more", "give more inputs")
    reference = f"{model.reference} with {len(plans)} heads planted"
    copied = replace(model, module=ungrouped_copy(model.module), reference=reference)
    fitted = round(len(batch.names) * _CALIBRATION)
    jobs = [_Job(plan, copied.module, fitted) for plan in plans]
    with watched([(job.place, job.fit) for job in jobs], batch):
        after = outputs(copied, batch)[fitted:]
    held_out = _rows(batch, fitted)
    change = _change(outputs(model, held_out), after)
    truths = [job.truth(change, _function(job, copied, held_out, after)) for job in jobs]
    return Planted(copied, tuple(truths))


class _Job:
    """One head to plant: `fit` is called with what its layer reads, before it computes with it."""

    def __init__(self, plan: Plan, module: nn.Module, fitted: int) -> None:
        self.plan, self._fitted = plan, fitted
        self.place, self._gains = chosen_layer(module, plan.layer, plan.head), norm_gains(module)
        self._found: Measured | None = None

    def fit(self, states: States) -> None:
        """Write the weights, and measure on the inputs they were not fitted on."""
        plan, place = self.plan, self.place
        fit, held_out = states.part(torch.arange(self._fitted)), states.part(torch.arange(self._fitted, len(states.x)))
        every = [write_energy(place.read(head), fit) for head in range(place.heads)]
        self._energy = float(torch.tensor(every).median())
        self._role: Sink | None = None
        old = place.read(plan.head)
        if plan.mechanism in NO_SINK:
            weights = without_sink(old, fit, plan.mechanism, plan.mass, self._energy)
        else:
            self._role = chosen_sink(plan.sink, states)
            weights = _with_sink(old, fit, self._role, plan, self._energy)
            if plan.mechanism == "inert":
                weights = unread(weights, fit, self._gains, self._energy, plan.seed)
        place.write(plan.head, weights)
        self._found = measured(place.read(plan.head), held_out)
        self._at_sink = None
        if self._role is not None:
            hit = may_be(self._role, held_out)[torch.arange(len(held_out.x)), self._found.sink]
            self._at_sink = float(hit.double().mean())

    def truth(self, change: float, function: float | None) -> Truth:
        """What was reached."""
        plan, found = self.plan, self._found
        assert found is not None
        return Truth(
            layer=plan.layer,
            head=plan.head,
            mechanism=plan.mechanism,  # type: ignore[arg-type]  # checked in Plan
            seed=plan.seed,
            sink=self._role,
            mass_asked=None if plan.mechanism in ("uniform", "dead") else plan.mass,
            mass=float(found.mass.mean()),
            parked=plan.parked,
            at_sink=self._at_sink,
            sink_inputs=float((found.mass >= SINK_MASS).double().mean()),
            shares_asked=checked_shares(plan.mechanism, plan.shares),
            shares=found.shares if self._role is not None else None,
            entropy_share=found.entropy_share,
            diagonal=found.diagonal,
            energy=found.ordinary / self._energy,
            function=function,
            output_change=change,
            n_inputs=len(found.mass),
        )


def _function(job: _Job, model: Model, batch: Batch, after: Sequence[Tensor]) -> float | None:
    if job.plan.mechanism != "inert":
        return None
    weights = job.place.read(job.plan.head)
    job.place.write(job.plan.head, replace(weights, wo=torch.zeros_like(weights.wo)))
    removed = outputs(model, batch)
    job.place.write(job.plan.head, weights)
    return _change(after, removed)


def _rows(batch: Batch, start: int) -> Batch:
    """The batch from an input on."""
    count = len(batch.names)

    def cut(value: Any) -> Any:
        return value[start:] if isinstance(value, Tensor) and value.ndim and len(value) == count else value

    kwargs = {name: cut(value) for name, value in batch.kwargs.items()}
    return replace(
        batch,
        names=batch.names[start:],
        args=tuple(cut(value) for value in batch.args),
        kwargs=kwargs,
        valid=cut(batch.valid),
        layouts=batch.layouts[start:],
    )


def _with_sink(old: HeadWeights, states: States, role: Sink, plan: Plan, energy: float) -> HeadWeights:
    """The sink, and what it hands out; of several features the one that comes nearest to what is asked."""
    asked = checked_shares(plan.mechanism, plan.shares)
    best: tuple[float, HeadWeights] | None = None
    for mark in marks(role, states, old.bq is not None, plan.seed):
        looking = parked_at(old, states, mark, plan.mass, plan.parked)
        if looking is None:
            continue
        weights, at_sink = looking
        error = 0.0
        if asked is not None:
            weights, error = handing(weights, states, mark, asked, energy, plan.seed)
        miss = error + (1 - at_sink)
        if best is None or miss < best[0]:
            best = miss, weights
        if miss < _GOOD:
            break
    if best is None:
        raise InputError(
            f"a {role} token that head {plan.layer}.{plan.head} cannot be made to look at with mass {plan.mass}",
            "a token that a linear map tells from the others",
            "choose another sink, layer or mass",
        )
    return best[1]


def _change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Relative root mean square."""
    changed = sum(float((b.double() - a.double()).square().sum()) for a, b in zip(before, after, strict=True))
    return float((changed / sum(float(a.double().square().sum()) for a in before)) ** 0.5)


def _saved(planted: Planted, folder: Path) -> Path:
    module: Any = planted.model.module
    source = str(getattr(module.config, "_name_or_path", ""))
    with quiet():
        module.save_pretrained(folder)
        if Path(source).is_dir():
            for file in Path(source).iterdir():
                if file.is_file() and file.suffix not in _WEIGHT_SUFFIXES and not (folder / file.name).exists():
                    shutil.copy(file, folder / file.name)
        elif source:
            _save_preparation(source, planted.model.modality, folder)
    rows = [{**asdict(truth), "faithful": truth.faithful} for truth in planted.truths]
    (folder / _TRUTH).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return folder


def _save_preparation(source: str, modality: str, folder: Path) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer

    loader: Any = AutoTokenizer if modality == "text" else AutoImageProcessor
    loader.from_pretrained(source).save_pretrained(folder)
