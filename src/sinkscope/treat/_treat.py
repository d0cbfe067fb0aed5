"""Puts treatments into models and takes them out."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from torch import nn

from sinkscope._errors import OptionError
from sinkscope.models import Model
from sinkscope.models._placement import seeded
from sinkscope.treat._anatomy import anatomy_of
from sinkscope.treat._body import Body
from sinkscope.treat._container import CONTAINER
from sinkscope.treat._probe import Probe, check_harmless, run, settle
from sinkscope.treat._record import AddedModule, Record, drop_record, find_record, make_record, require_record
from sinkscope.treat._starting import Starting
from sinkscope.treat._treatment import Treatment

Treatable = TypeVar("Treatable", bound=nn.Module | Model)


def treat(
    model: Treatable,
    treatments: Treatment | Sequence[Treatment],
    *,
    inplace: bool = False,
    probe: Probe | None = None,
    seed: int = 0,
) -> Treatable:
    """A model with treatments put into it.

    Treatments act in a fixed order, whatever their order in the list: registers and prefixes (the sequence), the gate
    on values, what is removed from attention, the form (softmax or what replaces it), which heads are left, the norm of
    head outputs, their gate, the global pathway. Of those that take the same place there is one per attention. A model
    that is treated already gets further ones.

    **Arguments:**

    - `model`: a module, or what `sinkscope.load` returned. Families are listed in the error for another one.
    - `treatments`: one or several.
    - `inplace`: change this model; otherwise a copy is changed, which has all weights again.
    - `probe`: an input of the model: a tensor, a tuple of arguments, a mapping of named ones, or a `Batch`. Treatments
      with starting values that depend on the model set them by it, and when all of them say they are harmless the
      outputs on it are compared with those before.
    - `seed`: of what starts at random.

    **Returns:** the model, of the type it was given in. Added parameters require gradients, all others are as before.

    **Raises:** `OptionError` for models of no supported family, treatments that the model cannot have or that exclude
    each other, a treatment that needs a probe when there is none, and harmless treatments that change the outputs on
    the probe. The model is then as it was.
    """
    chosen = [treatments] if isinstance(treatments, Treatment) else list(treatments)
    _check(chosen)
    needing = [treatment.name for treatment in chosen if treatment.needs_probe]
    if probe is None and needing:
        raise OptionError(
            f"{', '.join(needing)} without a probe",
            "an input of the model, by which they find a start that leaves the outputs as they are",
            "pass probe=, for instance a few pictures or token ids, or an option for another start",
        )
    return install(model, chosen, inplace=inplace, probe=probe, seed=seed)


def install(
    model: Treatable, chosen: Sequence[Treatment], *, inplace: bool, probe: Probe | None = None, seed: int = 0
) -> Treatable:
    """`treat` without its checks of the list. Starting values that need a probe are made without one."""
    module = module_of(model) if inplace else copy.deepcopy(module_of(model))
    _check_part(module)
    anatomy = anatomy_of(module)
    before = None if probe is None else run(module, probe)
    record = make_record(module)
    settled = {part for part in module.modules() if isinstance(part, Starting)}
    kept = len(record.steps)
    try:
        with seeded(seed):
            for treatment in chosen:
                treatment.install(Body(module, anatomy, record))
        if probe is not None and before is not None:
            settle(module, probe, settled)
            if all(treatment.harmless for treatment in chosen):
                check_harmless(before, run(module, probe), chosen, anatomy.sites[0].dtype)
    except BaseException:
        record.undo(kept)
        if not record.treatments:
            drop_record(module)
        raise
    notes = [_note(treatment) for treatment in chosen]
    record.treatments.extend(chosen)
    record.notes.extend(notes)
    if isinstance(model, Model):
        return cast(Treatable, replace(model, module=module, notes=(*model.notes, *notes)))
    return cast(Treatable, module)


def undo(model: Treatable) -> Treatable:
    """Takes all treatments out of the model, which is then bit for bit what it was before the first.

    Parameters of the model itself that were trained meanwhile keep their new values.

    **Raises:** `OptionError` when the model is not treated.
    """
    module = module_of(model)
    record = require_record(module)
    record.undo()
    drop_record(module)
    if isinstance(model, Model):
        notes = tuple(note for note in model.notes if note not in record.notes)
        return cast(Treatable, replace(model, notes=notes))
    return model


def added(model: nn.Module | Model) -> dict[str, nn.Parameter]:
    """What the treatments can learn: parameters by their names in the model.

    **Raises:** `OptionError` when the model is not treated.
    """
    module = module_of(model)
    record = require_record(module)
    prefixes = tuple(added_names(module, record))
    return {name: p for name, p in module.named_parameters() if name.startswith(prefixes)}


def treatments_of(model: nn.Module | Model) -> tuple[Treatment, ...]:
    """The treatments of a model in the order in which they were put in; none when it is not treated."""
    record = find_record(module_of(model))
    return () if record is None else tuple(record.treatments)


def added_names(module: nn.Module, record: Record) -> Iterator[str]:
    """Prefixes, with their dot, of the names of everything that was added."""
    ids = {id(step.module) for step in record.steps if isinstance(step, AddedModule)}
    for name, part in module.named_modules():
        if id(part) in ids:
            yield f"{name}."


def _check(treatments: Sequence[Any]) -> None:
    if not treatments:
        raise OptionError("no treatment", "one or more", "pass for instance [sinkscope.treat.Gate()]")
    for treatment in treatments:
        if not isinstance(treatment, Treatment):
            raise OptionError(
                f"{treatment!r} as a treatment",
                "objects such as sinkscope.treat.Gate()",
                "make one of them with its options",
            )


def _check_part(module: nn.Module) -> None:
    if find_record(module) is not None:
        return
    inside = next((name for name, part in module.named_modules() if find_record(part) is not None), None)
    if inside is not None or any(CONTAINER in part._modules for part in module.modules()):
        raise OptionError(
            f"{type(module).__name__} is part of a treated model, or holds one",
            "the model that was treated, or an untreated one",
            "pass the model that treat returned",
        )


def module_of(model: nn.Module | Model) -> nn.Module:
    """The torch module.

    **Raises:** `OptionError` for what is no model.
    """
    if isinstance(model, Model):
        return model.module
    if isinstance(model, nn.Module):
        return model
    raise OptionError(
        f"a model of type {type(model).__name__}",
        "a torch module, or what sinkscope.load returns",
        "load the model first",
    )


def _note(treatment: Treatment) -> str:
    effect = "outputs unchanged until tuned" if treatment.harmless else "changes the outputs from the start"
    return f"treated with {treatment} ({effect})"
