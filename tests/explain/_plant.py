"""Artifacts with planted heads, written the way a measuring room writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sinkscope.artifact import MEDIAN_COLUMNS, Artifact, ModelInfo, build_manifest, open_artifact, open_run
from sinkscope.explain import get_rule

DIM = 3
MODEL: ModelInfo = {
    "reference": "zoo:planted",
    "class": "Planted",
    "modality": "vision",
    "weights_sha256": "0",
    "parameters": 1,
    "dtype": "float32",
    "notes": [],
}


def floats(*values: Any) -> np.ndarray:
    """The numbers as event columns hold them."""
    return np.array(values, dtype=np.float32)


def plant(
    out: Path,
    columns: Mapping[str, np.ndarray],
    energy: np.ndarray | None = None,
    rule: str = "fesser",
    values: np.ndarray | None = None,
) -> Artifact:
    """A finished artifact in two parts.

    - `columns`: event columns of shape (inputs, layers, heads) or what broadcasts to it (five inputs if none says
      otherwise); those left out are 0.5.
    - `energy`: (inputs, layers, heads, 4), ones by default.
    - `values`: sink values (inputs, layers, heads, DIM) with identity Gram matrices, for rows with mass >= 0.3; none
      when left out, as in a model without projections.
    """
    inputs, layers, heads = np.broadcast_shapes((1, 1, 1), *(np.shape(column) for column in columns.values()))
    n_inputs = inputs if inputs > 1 else 5
    shape = (n_inputs, layers, heads)
    energy = np.ones((*shape, 4)) if energy is None else energy
    full = {name: np.broadcast_to(columns.get(name, floats(0.5)), shape) for name in MEDIAN_COLUMNS}
    full["sink"] = np.broadcast_to(columns.get("sink", np.zeros(1)), shape)
    full["role"] = np.broadcast_to(columns.get("role", np.array("cls")), shape)
    manifest = build_manifest(
        model=MODEL, inputs={"kind": "images"}, options={"seed": 0}, rule=get_rule(rule).to_dict(), command="sinkscope"
    )
    run = open_run(out, manifest)
    grams = np.broadcast_to(np.eye(DIM), (layers, heads, DIM, DIM))
    run.record_capture({"line": "captured"}, None if values is None else grams)
    for index, part in enumerate((slice(0, 2), slice(2, n_inputs))):
        place, layer, head = (axis.ravel() for axis in np.indices(shape)[:, part])
        n = len(place)
        events: dict[str, Any] = {
            "input": [f"{number}.jpg" for number in place],
            "layer": layer,
            "head": head,
            **{name: full[name][part].ravel() for name in full},
            "row": [None] * n,
            "col": [None] * n,
            "top_sinks": [[0]] * n,
            "top_masses": [[0.5]] * n,
        }
        events["sink"] = [None if np.isnan(sink) else int(sink) for sink in events["sink"]]
        events["role"] = [None if role == "" else str(role) for role in events["role"]]
        rows = np.argwhere(full["mass"][part] >= 0.3) if values is not None else np.empty((0, 3), dtype=np.int32)
        value = values[part][tuple(rows.T)] if values is not None else np.empty((0, DIM))
        run.write_part(
            index,
            events,
            {
                "energy": energy[part],
                "rows": rows,
                "sink_value": value,
                "sink_energy": (value**2).sum(axis=1),
                "ordinary_energy": np.ones(len(rows)),
            },
        )
    run.finish(2)
    return open_artifact(out)
