"""The main job: from a model and inputs to an artifact, its tables and its report."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sinkscope._diagnosis import Diagnosis
from sinkscope._errors import OptionError
from sinkscope._load import load
from sinkscope._toy_reference import toy_folder
from sinkscope._world import World, announced, joined
from sinkscope.artifact import (
    Manifest,
    ModelInfo,
    attach_run,
    build_manifest,
    open_artifact,
    opened_run,
    require_free,
)
from sinkscope.explain import Rule, build_heads, get_rule
from sinkscope.measure import MeasureOptions, measure, write_unusable
from sinkscope.models import Batch, Inputs, Modality, Model, make_inputs

if TYPE_CHECKING:
    from torch import nn

InputKind = Literal["images", "text", "dataset"]
_LEAST = {"batch_size": 1, "limit": 1, "size": 1, "length": 2, "queries": 2, "seed": 0, "num_workers": 0}
_LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class DiagnoseOptions:
    """What a run depends on beside the model and the inputs; stored in the manifest.

    - `batch_size`: inputs per forward pass.
    - `limit`: measure only the first so many inputs.
    - `size`: side of the square picture in pixels; None for the model's own.
    - `length`: tokens per text window; None for the model's own, 128 at most.
    - `queries`: `all`, or how many queries to sample per input.
    - `seed`: of the sample and of bootstrap intervals.
    - `dtype`: type the weights are loaded in; None for that of the checkpoint.
    - `skip_bad`: leave out inputs that cannot be read, and name them, instead of stopping.
    - `device`, `num_workers`: where and with how many reading threads; no result depends on them.
    """

    batch_size: int = 8
    limit: int | None = None
    size: int | None = None
    length: int | None = None
    queries: int | Literal["all"] = "all"
    seed: int = 0
    dtype: str | None = None
    skip_bad: bool = False
    device: str = "cpu"
    num_workers: int = 0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value != "all" and (not isinstance(value, int) or value < least):
                flag = "--" + name.replace("_", "-")
                raise OptionError(f"{flag} is {value!r}", f"a whole number from {least} on", f"correct {flag}")
        if self.seed > _LARGEST_SEED:
            raise OptionError(f"--seed is {self.seed}", f"a number up to {_LARGEST_SEED}", "correct --seed")


def diagnose(
    model: str | nn.Module | Model,
    inputs: Any = None,
    out: Path | str | None = None,
    *,
    kind: InputKind | None = None,
    rule: str = "fesser",
    trust_remote_code: bool = False,
    device_map: Any = None,
    tp_plan: Any = None,
    on_batch: Callable[[Batch, int | None], None] | None = None,
    command: str | None = None,
    **options: Any,
) -> Diagnosis:
    """Measure the attention sinks of a model on real inputs.

    The model's own forward runs under fused attention; every statistic is exact and memory is linear in tokens.

    **Arguments:**

    - `model`: a reference (see `sinkscope.load`), a torch module, a loaded `Model`, or `toy:FOLDER`, where
        `sinkscope toy` has written one run.
    - `inputs`: a folder or file, pictures, strings, a tensor, a dict of model arguments, or an iterable of batches;
        None for a toy, which is measured on `limit` (256) held-out inputs of its task.
    - `out`: the artifact's folder; an unfinished run of the same command there is gone on with. None keeps the
        artifact in a temporary folder for as long as the Diagnosis lives.
    - `kind`: what `inputs` is, where a path alone does not tell: `images`, `text` or `dataset`.
    - `rule`: name of the rule that calls a row an event.
    - `on_batch`: called after each batch with it and the number of batches, if known.
    - `command`: what to run to go on; the manifest and messages name it.
    - `options`: fields of [`DiagnoseOptions`][sinkscope.DiagnoseOptions].

    **Returns:** a [`Diagnosis`][sinkscope.Diagnosis].

    **Raises:** a `SinkError` for every foreseeable mistake: the model cannot be had, inputs are empty or broken, there
    is no attention to see, activations are not finite, memory or disk run out, `out` belongs to another run.
    """
    chosen = _options(options)
    event_rule = get_rule(rule)
    if out is None and announced().size > 1:
        raise OptionError("several processes without out", "a folder that all of them reach", "pass out=FOLDER")
    if out is not None:
        require_free(Path(out))
    kept = ExitStack()
    path = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="sinkscope-")) if out is None else out)
    with kept, joined() as world:
        if (folder := toy_folder(model)) is not None:
            given = {"inputs": inputs, "kind": kind, "device_map": device_map, "tp_plan": tp_plan}
            loaded, supply = _toy(str(model), folder, chosen, given)
        else:
            loaded = (
                model
                if isinstance(model, Model)
                else _load(model, kind, chosen, trust_remote_code, device_map, tp_plan)
            )
            supply = _inputs(loaded, inputs, kind, chosen)
        manifest = _manifest(
            loaded,
            supply,
            chosen,
            event_rule,
            command or f"sinkscope.diagnose({loaded.reference!r}, ..., out={str(path)!r})",
        )
        with opened_run(path, manifest) if world.first else nullcontext():
            world.wait()
            _run(loaded, supply, path, chosen, world, on_batch)
            if world.first:
                finish(path, event_rule, chosen.seed, supply.n_batches)
            world.wait()
        diagnosis = Diagnosis(open_artifact(path))
        weakref.finalize(diagnosis, kept.pop_all().close)
    return diagnosis


def finish(path: Path, rule: Rule, seed: int, n_batches: int | None) -> None:
    """Turn the parts of a run into a finished artifact: vectors, heads, manifest.

    **Raises:** `ArtifactError` when parts are missing.
    """
    run = attach_run(path)
    run.finish(n_batches)
    run.write_heads(build_heads(open_artifact(path), rule, seed))


def _run(
    model: Model,
    supply: Inputs,
    path: Path,
    options: DiagnoseOptions,
    world: World,
    on_batch: Callable[[Batch, int | None], None] | None,
) -> None:
    queries = None if options.queries == "all" else options.queries
    run = attach_run(path)
    unusable = measure(
        model,
        supply,
        run,
        MeasureOptions(queries, options.seed, world.rank, world.size),
        None if on_batch is None else lambda batch: on_batch(batch, supply.n_batches),
    )
    world.wait()  # for what the first batch of any process tells about the model
    write_unusable(run, unusable)
    world.wait()


def _options(options: Mapping[str, Any]) -> DiagnoseOptions:
    known = DiagnoseOptions.__dataclass_fields__
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise OptionError(f"unknown option {unknown[0]!r}", f"one of {', '.join(known)}", "help(sinkscope.diagnose)")
    return DiagnoseOptions(**options)


def _load(
    model: str | nn.Module,
    kind: InputKind | None,
    options: DiagnoseOptions,
    trust_remote_code: bool,
    device_map: Any,
    tp_plan: Any,
) -> Model:
    modalities: dict[str, Modality] = {"images": "vision", "text": "text"}
    modality = modalities.get(kind or "")
    return load(
        model,
        modality=modality,
        device=options.device,
        dtype=options.dtype,
        device_map=device_map,
        tp_plan=tp_plan,
        trust_remote_code=trust_remote_code,
    )


def _inputs(model: Model, inputs: Any, kind: InputKind | None, options: DiagnoseOptions) -> Inputs:
    return make_inputs(
        model,
        inputs,
        batch_size=options.batch_size,
        limit=options.limit,
        size=options.size,
        length=options.length,
        seed=options.seed,
        num_workers=options.num_workers,
        skip_bad=options.skip_bad,
        kind=kind,
    )


def _toy(reference: str, folder: Path, options: DiagnoseOptions, given: Mapping[str, Any]) -> tuple[Model, Inputs]:
    from sinkscope._toy_model import load_toy, refuse_for_toy, task_inputs

    refuse_for_toy(reference, **given, size=options.size, length=options.length)
    model, task = load_toy(reference, folder, options.device, options.dtype)
    return model, task_inputs(model, task, options.limit, options.batch_size)


def _manifest(model: Model, supply: Inputs, options: DiagnoseOptions, rule: Rule, command: str) -> Manifest:
    return build_manifest(
        model=ModelInfo(
            {
                "reference": model.reference,
                "class": type(model.module).__name__,
                "modality": model.modality,
                "weights_sha256": model.weights_sha256(),
                "parameters": model.parameters,
                "dtype": model.dtype,
                "notes": list(model.notes),
            }
        ),
        inputs=supply.identity,
        options=asdict(options),
        rule=rule.to_dict(),
        command=command,
    )
