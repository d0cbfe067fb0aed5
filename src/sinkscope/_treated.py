"""A folder that holds a treated model: the treatments, and by which reference the model they are for is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from sinkscope import __version__, models, treat
from sinkscope._errors import ModelReferenceError, OptionError, WeightsError
from sinkscope._treated_reference import FACTS
from sinkscope.artifact._files import write_text
from sinkscope.artifact._manifest import dumps, now, packages
from sinkscope.models import Modality, Model
from sinkscope.models._model import wrong_modality
from sinkscope.models._placement import Placement
from sinkscope.models._reference import parse_reference

SCHEMA = 1


@dataclass(frozen=True)
class Base:
    """The model that was treated.

    - `given`: its reference as the user wrote it.
    - `reference`: the same with paths made absolute, so that it holds in any folder.
    - `modality`, `dtype`: as it was loaded with; None for the checkpoint's own number type.
    """

    given: str
    reference: str
    modality: Modality
    dtype: str | None


@dataclass(frozen=True)
class Treated:
    """What `treated.json` tells beside the treatments themselves.

    - `base`: the model that was treated.
    - `command`: that wrote the folder.
    - `treatments`: in words, as the command line takes them.
    - `added`: how many parameters, and their `share` of the model's own.
    - `probe`: on which inputs outputs were compared before any tuning, and by how much they changed.
    - `notes`: what a reader of results must know of how treatments were set and tuned.
    - `tuning`: `inputs` and `result` of each tuning, in order.
    """

    base: Base
    command: str = ""
    treatments: tuple[str, ...] = ()
    added: Mapping[str, Any] = field(default_factory=dict)
    probe: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tuning: tuple[Mapping[str, Any], ...] = ()


def base_of(reference: str, model: Model, dtype: str | None) -> Base:
    """How the model of this reference is to be found again."""
    return Base(reference, _absolute(reference), model.modality, dtype)


def write_treated(folder: Path, treated: Treated) -> None:
    """Writes `treated.json`. **Raises:** `ArtifactError`, `ResourceError` when it cannot be written."""
    content = {"schema": SCHEMA, "sinkscope": __version__, "created": now(), "packages": packages()}
    write_text(folder / FACTS, dumps(content | asdict(treated)))


def read_treated(folder: Path) -> Treated:
    """What `write_treated` wrote.

    **Raises:** `WeightsError` when it is damaged or of another version.
    """
    path = folder / FACTS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] == SCHEMA:
            found = {each.name: content[each.name] for each in fields(Treated)}
            base = Base(**found.pop("base"))
            return Treated(base, **found | {name: tuple(found[name]) for name in ("treatments", "notes", "tuning")})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} is damaged ({type(error).__name__}: {error})", "the file of `sinkscope treat`", "treat again"
        ) from None
    raise WeightsError(
        f"{path} has schema {content['schema']}", f"schema {SCHEMA}", "use the version of sinkscope that wrote it"
    )


def load_treated(reference: str, folder: Path, modality: Modality | None, placement: Placement) -> Model:
    """The model in a folder, under this reference.

    **Raises:** `ModelReferenceError` when the model it was made from is no longer there, `WeightsError` when that has
    changed or the folder is damaged, `OptionError` for another number type or kind of input, and for a spread model.
    """
    treated = read_treated(folder)
    base = treated.base
    if placement.spread:
        raise OptionError(f"device_map or tp_plan for {reference}", "a treated model on one device", "leave it out")
    if placement.dtype not in (None, base.dtype):
        raise OptionError(
            f"dtype {placement.dtype} for {reference}",
            f"the type it was treated in, {base.dtype or 'the own type of ' + base.given}",
            f"leave it out, or treat anew: sinkscope treat {base.given} --dtype {placement.dtype} ...",
        )
    if modality not in (None, base.modality):
        raise wrong_modality(modality, base.modality, reference)
    try:
        model = models.load(
            base.reference,
            modality=base.modality,
            device=placement.device,
            dtype=base.dtype,
            trust_remote_code=placement.trust_remote_code,
        )
    except ModelReferenceError as error:
        raise ModelReferenceError(
            f"{error.found}, which {reference} was made from",
            error.expected,
            f"put it back, or in Python: sinkscope.treat.load(MODEL, {str(folder)!r})",
        ) from error
    model = treat.load(model, folder, inplace=True)
    return replace(model, reference=reference, notes=(*model.notes, *treated.notes))


def _absolute(reference: str) -> str:
    """The reference with its paths, if it has any, made absolute."""
    parsed = parse_reference(reference)
    name, options = parsed.name, reference.partition("?")[2]
    if parsed.scheme == "hf" and (folder := Path(name).expanduser()).is_dir():
        name = str(folder.absolute())
    if "checkpoint" in parsed.options:
        pairs = dict(parse_qsl(options, keep_blank_values=True))
        options = urlencode(pairs | {"checkpoint": str(Path(pairs["checkpoint"]).expanduser().absolute())}, safe="/")
    return f"{parsed.scheme}:{name}" + (f"?{options}" if options else "")
