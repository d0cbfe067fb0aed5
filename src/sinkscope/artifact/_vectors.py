"""The arrays beside the event rows: what a part holds, and how parts become `vectors.safetensors`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from .._errors import ArtifactError
from ._tensors import Stream, Tensors, write_streams

PART_VECTORS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "energy": ("float32", ("inputs", "layers", "heads", "4")),
    "rows": ("int32", ("rows", "3")),
    "sink_value": ("float32", ("rows", "head_dim")),
    "sink_energy": ("float32", ("rows",)),
    "ordinary_energy": ("float32", ("rows",)),
}
"""Arrays of a part, with dtype and axes. `rows` are (input within the part, layer, head) with mass >= 0.3 and a
projection; `energy` is [mean |v_j|, mean |u_j|, max |u_j|, |U|_F / sqrt(n)] over valid tokens."""


def part_vectors(vectors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of a part in their dtypes, checked against PART_VECTORS and each other.

    **Raises:** `ArtifactError` that names the array which is missing, unknown or of another shape.
    """
    if vectors.keys() != PART_VECTORS.keys():
        raise ArtifactError(
            f"a part's vectors are {', '.join(sorted(vectors))}",
            f"exactly {', '.join(sorted(PART_VECTORS))}",
            "pass these arrays, empty ones where there are no rows",
        )
    sizes: dict[str, int] = {}
    for name, (_, axes) in PART_VECTORS.items():
        shape = vectors[name].shape
        wanted = tuple(int(axis) if axis.isdigit() else sizes.get(axis) for axis in axes)
        if len(shape) != len(axes) or any(want not in (None, size) for want, size in zip(wanted, shape, strict=True)):
            raise ArtifactError(
                f"the array {name} of a part has shape {tuple(shape)}",
                f"({', '.join(axes)})" + (f" with {sizes}" if sizes else ""),
                f"pass {name} in that shape",
            )
        sizes |= {axis: size for axis, size in zip(axes, shape, strict=True) if not axis.isdigit()}
    return {name: np.asarray(vectors[name], dtype=dtype) for name, (dtype, _) in PART_VECTORS.items()}


def consolidate(
    path: Path, parts: Sequence[Path], gram: Float[np.ndarray, "layers heads head_dim head_dim"] | None
) -> None:
    """Write `vectors.safetensors`: all parts in order, rows counted from the run's first input, plus Gram matrices
    and the sums of sink values per head. Holds one part at a time.

    **Raises:** `ArtifactError` when parts do not fit each other or `gram`; otherwise as `replacing`.
    """
    tensors = [Tensors(part) for part in parts]
    energies = [part["energy"].shape for part in tensors]
    values = [part["sink_value"].shape for part in tensors]
    (_, layers, heads, _), (_, dim) = energies[0], values[0]
    for file, energy, value in zip(parts, energies, values, strict=True):
        if (*energy[1:3], value[1]) != (layers, heads, dim):
            raise ArtifactError(
                f"{file} has {energy[1]} layers, {energy[2]} heads and head size {value[1]}",
                f"{layers} layers, {heads} heads and head size {dim} as in {parts[0]}",
                "delete the folder and run the command again",
            )
    if gram is None:
        gram = np.full((layers, heads, dim, dim), np.nan)
    if gram.shape != (layers, heads, dim, dim):
        raise ArtifactError(
            f"the Gram matrices have shape {gram.shape}",
            f"{(layers, heads, dim, dim)} (layers, heads, head size, head size)",
            "pass one matrix per head, padded like the values",
        )
    starts = np.cumsum([0, *(energy[0] for energy in energies)])
    sums, counts = np.zeros((layers, heads, dim)), np.zeros((layers, heads), dtype=np.int64)
    for part in tensors:
        _, layer, head = part["rows"].T
        np.add.at(sums, (layer, head), part["sink_value"])
        np.add.at(counts, (layer, head), 1)

    def pieces(name: str) -> Iterator[np.ndarray]:
        for part, start in zip(tensors, starts[:-1], strict=True):
            yield part[name] + np.array([start, 0, 0]) if name == "rows" else part[name]

    lengths = {"inputs": int(starts[-1]), "rows": sum(value[0] for value in values)}
    streams = {
        name: Stream(dtype, (lengths[axes[0]], *tensors[0][name].shape[1:]), pieces(name))
        for name, (dtype, axes) in PART_VECTORS.items()
    }
    streams["gram"] = Stream("float32", gram.shape, [gram])
    streams["sink_value_sum"] = Stream("float64", sums.shape, [sums])
    streams["sink_value_count"] = Stream("int64", counts.shape, [counts])
    write_streams(path, streams)
