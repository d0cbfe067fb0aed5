"""Treatments in a folder: what was added, and the weights it belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sinkscope
from sinkscope._errors import OptionError, SinkError, WeightsError
from sinkscope.artifact._files import replacing, write_text
from sinkscope.models import Model
from sinkscope.models._hash import tensors_sha256
from sinkscope.models._weights import check_safetensors, first_line
from sinkscope.treat._anatomy import anatomy_of
from sinkscope.treat._record import Record, find_record, require_record
from sinkscope.treat._registry import TREATMENTS
from sinkscope.treat._treat import Treatable, added_names, install, module_of, undo
from sinkscope.treat._treatment import Treatment

SCHEMA = 1
JSON, TENSORS = "treatment.json", "treatment.safetensors"


def save(model: nn.Module | Model, folder: str | Path) -> None:
    """Writes the treatments of a model: `treatment.json` (treatments, and which weights they are for) and
    `treatment.safetensors` (added parameters and buffers, nothing else).

    **Raises:** `OptionError` when the model is not treated; `ArtifactError` and `ResourceError` when files cannot be
    written.
    """
    from safetensors.torch import save_file

    module = module_of(model)
    record = require_record(module)
    tensors = {name: value.detach().cpu().clone() for name, value in _added_state(module, record).items()}
    content = {
        "schema": SCHEMA,
        "sinkscope": sinkscope.__version__,
        "model": _identity(module, record),
        "treatments": [treatment.plain() for treatment in record.treatments],
        "tensors": {name: {"shape": list(value.shape), "dtype": _dtype(value)} for name, value in tensors.items()},
    }
    with replacing(Path(folder) / TENSORS) as path:
        save_file(tensors, path)
    write_text(Path(folder) / JSON, json.dumps(content, indent=2) + "\n")


def load(model: Treatable, folder: str | Path, *, inplace: bool = False) -> Treatable:
    """The model with the treatments that `save` wrote put back.

    **Arguments:**

    - `model`: the one that was treated, before its treatment: same class, weights and number type.
    - `inplace`: change this model, not a copy.

    **Raises:** `WeightsError` for a folder that is none, is damaged, or belongs to other weights, naming both hashes
    and sizes, and for tensors whose shapes do not fit; `OptionError` for a model that is treated already.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    content = _read(folder / JSON)
    check_safetensors(folder / TENSORS)
    module = module_of(model)
    if find_record(module) is not None:
        raise OptionError(f"{type(module).__name__} is treated already", "an untreated model", "call undo first")
    _check_identity(content["model"], _identity(module, None), folder)
    treated = install(model, [_treatment(entry, folder) for entry in content["treatments"]], inplace=inplace)
    target = module_of(treated)
    try:
        _fill(target, load_file(folder / TENSORS), folder)
    except BaseException:
        undo(target)
        raise
    return treated


def _added_state(module: nn.Module, record: Record) -> dict[str, Tensor]:
    prefixes = tuple(added_names(module, record))
    return {name: value for name, value in module.state_dict().items() if name.startswith(prefixes)}


def _identity(module: nn.Module, record: Record | None) -> dict[str, Any]:
    """Class, family, sizes and hash of the weights of a model, added ones excluded."""
    anatomy = anatomy_of(module)
    shape = anatomy.sites[0].shape
    added = set() if record is None else set(_added_state(module, record))
    state = {name: value for name, value in module.state_dict().items() if name not in added}
    return {
        "class": type(module).__name__,
        "family": anatomy.family.name,
        "layers": len(anatomy.sites),
        "width": shape.residual,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "dtype": _dtype(next(iter(state.values()))),
        "sha256": tensors_sha256({name: value for name, value in state.items() if isinstance(value, Tensor)}),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        schema = content["schema"]
        if schema == SCHEMA and not {"model", "treatments", "tensors"} - content.keys():
            return dict(content)
    except OSError as error:
        raise WeightsError(
            f"no saved treatment in {path.parent} ({first_line(error)})",
            f"a folder with {JSON} and {TENSORS}",
            "check the path and its spelling",
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} is damaged ({first_line(error)})", f"the {JSON} that save writes", "save again"
        ) from None
    raise WeightsError(f"{path} has schema {schema}", f"schema {SCHEMA}", "use the version of sinkscope that wrote it")


def _check_identity(saved: dict[str, Any], found: dict[str, Any], folder: Path) -> None:
    if saved != found:
        raise WeightsError(
            f"the treatment in {folder} is for {_words(saved)}, and the model is {_words(found)}",
            "the same weights",
            "load the model it was made for, in the same number type and untrained since",
        )


def _words(identity: dict[str, Any]) -> str:
    sizes = ", ".join(f"{name} {identity[name]}" for name in ("layers", "width", "heads", "kv_heads"))
    return f"{identity['class']} ({sizes}, {identity['dtype']}, sha256 {str(identity['sha256'])[:12]})"


def _treatment(entry: dict[str, Any], folder: Path) -> Treatment:
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    name: Any = options.pop("name", None)
    if name not in TREATMENTS:
        raise WeightsError(
            f"the treatment {name!r} in {folder}", f"one of {', '.join(TREATMENTS)}", "use the version that wrote it"
        )
    try:
        return TREATMENTS[name](**options)
    except (TypeError, SinkError) as error:
        raise WeightsError(
            f"options of {name} in {folder} that do not fit ({first_line(error)})", "those of save", "save again"
        ) from None


def _fill(module: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    state = _added_state(module, require_record(module))
    wanted = {name: tuple(value.shape) for name, value in state.items()}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if wanted != found:
        name = next(name for name in sorted(wanted | found) if wanted.get(name) != found.get(name))
        raise WeightsError(
            f"{name} in {folder / TENSORS} has shape {found.get(name, 'none')}",
            f"{wanted.get(name, 'no such tensor')}",
            "save the treatment again",
        )
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(tensors[name])


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
