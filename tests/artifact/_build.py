"""Small runs with made-up numbers: what a measuring room would hand to the artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sinkscope.artifact import MEDIAN_COLUMNS, Manifest, ModelInfo, Run, build_manifest

LAYERS, HEADS, DIM = 2, 3, 5
COVERAGE = {"attention_modules": LAYERS, "captured_modules": LAYERS, "line": "captured 2 of 2 attention modules"}


def manifest(**options: Any) -> Manifest:
    model: ModelInfo = {
        "reference": "zoo:tiny",
        "class": "TinyModel",
        "modality": "vision",
        "weights_sha256": "ab12",
        "parameters": 17,
        "dtype": "float32",
        "notes": [],
    }
    return build_manifest(
        model=model,
        inputs={"kind": "images", "location": "pictures", "count": 7, "sha256": "cd34"},
        options={"batch_size": 2, "queries": "all", "seed": 0, "device": "cpu", "num_workers": 0} | options,
        rule={"name": "fesser", "source": "a paper", "event": "routed >= 0.9"},
        command="sinkscope diagnose zoo:tiny --images pictures --out out",
    )


def gram() -> np.ndarray:
    weights = np.random.default_rng(7).standard_normal((LAYERS, HEADS, 11, DIM))
    return np.swapaxes(weights, 2, 3) @ weights


def events(index: int, n_inputs: int) -> dict[str, Any]:
    """Rows of one part; the first row has no sink and no projection."""
    rng = np.random.default_rng(index)
    place, layer, head = (axis.ravel() for axis in np.indices((n_inputs, LAYERS, HEADS)))
    n = len(place)
    columns: dict[str, Any] = {
        "input": [f"picture-{index}-{number}.jpg" for number in place],
        "layer": layer,
        "head": head,
        "sink": [int(sink) for sink in rng.integers(0, 13, n)],
        "role": ["cls" if number % 2 else "patch" for number in range(n)],
        "row": [None if number % 2 else int(number) for number in range(n)],
        "col": [None if number % 2 else 3 for number in range(n)],
        "top_sinks": [[3, 1, 4, 2][: 1 + number % 4] for number in range(n)],
        "top_masses": [[0.5, 0.25, 0.125, 0.0625][: 1 + number % 4] for number in range(n)],
    }
    columns |= {name: rng.random(n, dtype=np.float32) for name in MEDIAN_COLUMNS}
    if n:
        columns["sink"][0] = columns["role"][0] = columns["row"][0] = columns["col"][0] = None
        columns["mass"][0] = columns["update_ratio"][0] = np.nan
        columns["top_sinks"][0] = columns["top_masses"][0] = []
    return columns


def vectors(index: int, n_inputs: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(100 + index)
    rows = np.argwhere(events(index, n_inputs)["mass"].reshape(n_inputs, LAYERS, HEADS) >= 0.3)
    return {
        "energy": rng.random((n_inputs, LAYERS, HEADS, 4), dtype=np.float32),
        "rows": rows.astype(np.int32),
        "sink_value": rng.standard_normal((len(rows), DIM)).astype(np.float32),
        "sink_energy": rng.random(len(rows), dtype=np.float32),
        "ordinary_energy": rng.random(len(rows), dtype=np.float32),
    }


def write_part(run: Run, index: int, n_inputs: int) -> None:
    run.write_part(
        index,
        events(index, n_inputs),
        vectors(index, n_inputs),
        n_tokens=(11 + index, 13 + index) if n_inputs else None,
        bad_inputs={f"broken-{index}.jpg": "truncated"} if index % 2 else {},
        seconds=0.25,
    )


def write_run(run: Run, sizes: tuple[int, ...] = (2, 2, 3)) -> None:
    run.record_capture(COVERAGE, gram())
    for index, n_inputs in enumerate(sizes):
        if index not in run.done():
            write_part(run, index, n_inputs)
    run.finish(len(sizes))


def tables(out: Path) -> dict[str, bytes]:
    """Every file of an artifact but the manifest, which holds the time."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
