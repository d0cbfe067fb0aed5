"""The part of a comparison that runs the models again: tables of agreement, loss, accuracy and outliers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from sinkscope._compare_run import OUTLIERS, Measured, Side, run_pair
from sinkscope._errors import SinkError
from sinkscope._reload import inputs_again, load_again, model_again
from sinkscope.artifact import COMPARED_INPUT_COLUMNS, Artifact
from sinkscope.explain import Key, PerInput, compared_table
from sinkscope.models import Inputs, Model

_UNITS = {
    "final_cosine": "cosine",
    "output_kl": "nat",
    "output_top1": "share",
    "loss": "nat",
    "accuracy": "share",
    "largest": "activation",
    "ratio": "ratio",
    "kurtosis": "kurtosis",
    "channel_kurtosis": "kurtosis",
    "largest_added": "activation",
}
_MEANS = ("final_cosine", "output_kl", "output_top1", "loss", "accuracy")


@dataclass
class Outputs:
    """What running the models gave.

    - `measures`: rows of the table of measures, groups `outputs` and `outliers`.
    - `inputs`: one row per model and input.
    - `notes`: what could not be compared, and why, with letters for the models.
    - `reasons`: per diagnosis why its model was not run; None where it was.
    """

    measures: list[pd.DataFrame] = field(default_factory=list)
    inputs: list[pd.DataFrame] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reasons: list[str | None] = field(default_factory=list)


def compare_outputs(
    artifacts: Sequence[Artifact],
    letters: Sequence[str],
    *,
    limit: int | None,
    device: str,
    seed: int,
    trust_remote_code: bool,
    models: Sequence[Any],
    data: Any,
    on_input: Callable[[int, int, int | None], None] | None,
) -> Outputs:
    """Run the first model and each other one on the inputs of the first diagnosis.

    What keeps a model from being run is told in `reasons`, and the others go on.

    **Arguments:**

    - `models`: per diagnosis the model anew, where no reference can load it; else None.
    - `data`: the inputs anew where they cannot be read again.
    - `on_input`: called with the number of the model, inputs done and of how many.
    """
    found = Outputs()
    try:
        model, supply = load_again(
            artifacts[0], model=models[0], data=data, device=device, trust_remote_code=trust_remote_code
        )
    except SinkError as error:
        found.reasons += [_reason(error), *(f"that of {letters[0]} was not" for _ in artifacts[1:])]
        return found
    found.reasons.append(None)
    first = _side(artifacts[0], model, supply)
    base: Measured | None = None
    for number, artifact in enumerate(artifacts[1:], 1):
        try:
            other = model_again(artifact, model=models[number], device=device, trust_remote_code=trust_remote_code)
            second = _side(artifact, other, _prepared(artifacts[0], supply, other, data))
            pair = run_pair(first, second, limit, None if on_input is None else partial(on_input, number))
        except SinkError as error:
            found.reasons.append(_reason(error))
            continue
        found.reasons.append(None)
        found.notes += [note.format(letters[0], letters[number]) for note in pair.notes]
        if base is None:
            base = pair.first
            _add(found, 0, base, None, seed)
        _add(found, number, pair.second, pair.first, seed)
    return found


def _side(artifact: Artifact, model: Model, inputs: Inputs) -> Side:
    return Side(model, inputs, [layer["layer"] for layer in artifact.manifest["coverage"]["layers"]])


def _prepared(base: Artifact, supply: Inputs, model: Model, data: Any) -> Inputs:
    """The inputs of the base as `model` takes them. Toys of one task take the same."""
    return supply if supply.identity["kind"] == "task" else inputs_again(base, model, data)


def _reason(error: SinkError) -> str:
    return f"{error.found}; expected {error.expected}"


def _add(found: Outputs, model: int, own: Measured, base: Measured | None, seed: int) -> None:
    """Rows of both tables. What was measured is paired: all models get the same inputs."""
    outputs = pd.DataFrame.from_dict(own.outputs, orient="index").dropna(axis=1, how="all")
    before = None if base is None else pd.DataFrame.from_dict(base.outputs, orient="index")
    columns = [name for name in _MEANS if name in outputs]
    if columns:
        shared = None if before is None else [name for name in columns if name in before and before[name].notna().any()]
        there = None if before is None or not shared else (_keys("outputs", shared), _means(before[shared]), True)
        found.measures.append(compared_table(model, _keys("outputs", columns), _means(outputs[columns]), there, seed))
    if "final_change" in outputs:
        squares = PerInput.mean(outputs[["final_change"]].to_numpy(np.float64) ** 2, np.sqrt)
        key: Key = ("outputs", "final_change", None, "change")
        found.measures.append(compared_table(model, [key], squares, None, seed))
    _add_outliers(found, model, own, base, seed)
    if outputs.columns.empty:
        return
    table = outputs.rename_axis("input").reset_index().assign(model=model)
    found.inputs.append(table.reindex(columns=[column.name for column in COMPARED_INPUT_COLUMNS]))


def _add_outliers(found: Outputs, model: int, own: Measured, base: Measured | None, seed: int) -> None:
    keys, values = _outlier_values(own)
    if not keys:
        return
    before = None if base is None else _outlier_values(base)
    there = None if before is None or not before[0] else (*before, True)
    found.measures.append(compared_table(model, keys, values, there, seed))


def _outlier_values(measured: Measured) -> tuple[list[Key], PerInput]:
    layers = sorted({layer for numbers in measured.outliers.values() for layer in numbers})
    columns: dict[Key, list[float]] = {}
    for layer in layers:
        for name in OUTLIERS:
            given = [numbers.get(layer, {}).get(name, np.nan) for numbers in measured.outliers.values()]
            if not np.isnan(given).all():
                columns["outliers", name, layer, _UNITS[name]] = given
    table = np.array(list(columns.values())).reshape(len(columns), -1).T
    return list(columns), PerInput.mean(table)


def _keys(group: str, names: Sequence[str]) -> list[Key]:
    return [(group, name, None, _UNITS[name]) for name in names]


def _means(table: pd.DataFrame) -> PerInput:
    return PerInput.mean(table.to_numpy(np.float64))
