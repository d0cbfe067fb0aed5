"""The model and the inputs of a finished diagnosis again, and the proof that they are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from sinkscope._errors import InputError, ModelReferenceError, OptionError, WeightsError
from sinkscope._load import load
from sinkscope._toy_reference import toy_folder
from sinkscope.artifact import Artifact
from sinkscope.models import Inputs, Modality, Model, make_inputs

_UNKNOWN: Modality = "unknown"


def load_again(
    artifact: Artifact, *, model: Any, data: Any, device: str, trust_remote_code: bool
) -> tuple[Model, Inputs]:
    """The model and the inputs that `artifact` was made from.

    **Arguments:**

    - `model`: the model anew where no reference can load it: a module, a loaded `Model` or a reference; else None.
    - `data`: the inputs anew where they had no place to be read from, in the form that `diagnose` took; else None.

    **Raises:** `OptionError` when one of them must be given and is not; `WeightsError`, `InputError` when one has
    changed, with both hashes; else as `load` and `make_inputs`.
    """
    reference = artifact.manifest["model"]["reference"]
    toy = _toy_folder(artifact) if model is None else None
    if toy is not None:
        loaded, supply = _toy(reference, toy, artifact, data, device)
    else:
        loaded = model if isinstance(model, Model) else _model(artifact, model, device, trust_remote_code)
        supply = None
    require_same_weights(artifact, loaded)
    if supply is None:
        supply = inputs_again(artifact, loaded, data)
    _require_same_inputs(artifact, supply)
    return loaded, supply


def model_again(artifact: Artifact, *, model: Any, device: str, trust_remote_code: bool) -> Model:
    """The model that `artifact` was made from, without its inputs. Arguments and errors as `load_again`."""
    toy = _toy_folder(artifact) if model is None else None
    if toy is not None:
        loaded, _ = _toy(artifact.manifest["model"]["reference"], toy, artifact, None, device)
    else:
        loaded = model if isinstance(model, Model) else _model(artifact, model, device, trust_remote_code)
    require_same_weights(artifact, loaded)
    return loaded


def _toy_folder(artifact: Artifact) -> Path | None:
    try:
        return toy_folder(artifact.manifest["model"]["reference"])
    except ModelReferenceError as error:
        raise _moved(artifact, error) from error


def _model(artifact: Artifact, model: nn.Module | str | None, device: str, trust_remote_code: bool) -> Model:
    facts = artifact.manifest["model"]
    if model is None and facts["reference"].startswith("module:"):
        raise OptionError(
            f"{artifact.path} was made from a torch module ({facts['class']}), which no reference can load",
            "that module, in Python",
            f"sinkscope.open({str(artifact.path)!r}).verify(model=MODULE, data=INPUTS)",
        )
    modality = None if facts["modality"] == _UNKNOWN else facts["modality"]
    if isinstance(model, nn.Module):
        return load(model, modality=modality)
    try:
        return load(
            facts["reference"] if model is None else model,
            modality=modality,
            device=device,
            dtype=artifact.manifest["options"]["dtype"],
            trust_remote_code=trust_remote_code,
        )
    except ModelReferenceError as error:
        raise _moved(artifact, error) from error


def _moved(artifact: Artifact, error: ModelReferenceError) -> ModelReferenceError:
    return ModelReferenceError(
        error.found,
        f"what it was when {artifact.path} was made",
        "verify from the folder that diagnose ran in, as the reference may be a relative path; or in Python: "
        "diagnosis.verify(model=REFERENCE)",
    )


def inputs_again(artifact: Artifact, model: Model, data: Any) -> Inputs:
    """The inputs that `artifact` was made from, prepared for `model`. Arguments and errors as `load_again`."""
    there, options = artifact.manifest["inputs"], artifact.manifest["options"]
    kind = there["kind"] if there["kind"] in ("images", "text", "dataset") else None
    if data is None:
        data = there["location"] if kind else None
    if data is None:
        raise OptionError(
            f"the inputs of {artifact.path} were not read from one file or folder",
            "the same inputs, in Python",
            f"sinkscope.open({str(artifact.path)!r}).verify(data=INPUTS)",
        )
    try:
        return make_inputs(
            model,
            data,
            batch_size=options["batch_size"],
            limit=options["limit"],
            size=options["size"],
            length=options["length"],
            seed=options["seed"],
            skip_bad=options["skip_bad"],
            kind=kind,
        )
    except InputError as error:
        raise InputError(
            error.found,
            f"the inputs that {artifact.path} was made from",
            "put them back, or in Python: diagnosis.verify(data=INPUTS)",
        ) from error


def _toy(reference: str, folder: Path, artifact: Artifact, data: Any, device: str) -> tuple[Model, Inputs]:
    from sinkscope._toy_model import load_toy, refuse_for_toy, task_inputs

    refuse_for_toy(reference, data=data)
    options = artifact.manifest["options"]
    model, task = load_toy(reference, folder, device, options["dtype"])
    return model, task_inputs(model, task, options["limit"], options["batch_size"])


def require_same_weights(artifact: Artifact, model: Model) -> None:
    """**Raises:** `WeightsError` when the model is not the one that was diagnosed, with both hashes."""
    there, here = artifact.manifest["model"]["weights_sha256"], model.weights_sha256()
    if there != here:
        raise WeightsError(
            f"the weights of {model.reference} are not those of {artifact.path} (sha256 {here} now, {there} then)",
            "the weights that were diagnosed",
            "diagnose the model as it is now, into another folder",
        )


def _require_same_inputs(artifact: Artifact, supply: Inputs) -> None:
    """Where they are read from does not matter."""
    there, here = artifact.manifest["inputs"], dict(supply.identity)
    names = [name for name in dict.fromkeys([*there, *here]) if name not in ("location", "ignored_files")]
    differing = [
        f"{name} {here.get(name)} now, {there.get(name)} then" for name in names if there.get(name) != here.get(name)
    ]
    if differing:
        raise InputError(
            f"the inputs are not those of {artifact.path} ({'; '.join(differing)})",
            "the inputs that were diagnosed, unchanged",
            "diagnose these inputs into another folder, or in Python give the old ones: diagnosis.verify(data=INPUTS)",
        )
