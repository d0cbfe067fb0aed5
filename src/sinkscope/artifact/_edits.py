"""Causal edits on disk: one part per layer, batch and round in `edits/`, and the table of all of them.

A round is one set of heads; heads that are asked for later make another.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from .._errors import ArtifactError
from ._manifest import damaged
from ._parquet import reading, write_table
from ._schema import Column
from ._tables import exact_table, to_pandas
from ._tensors import Tensors, write_tensors

EDITS = ("noop", "zero", "mean", "donor", "ordinary", "redirect", "control", "random", "other_head")
"""Names of the edits of one head."""

EDIT_COLUMNS: tuple[Column, ...] = (
    Column("input", "string", "name of the edited input, as in the events"),
    Column("layer", "int32", "layer of the edited head"),
    Column("head", "int32", "edited query head; under `other_head` the head that the edited one is compared with"),
    Column("sink", "int32", "the head's sink on this input"),
    Column("mass", "float32", "its mass, as in the events"),
    Column(
        "edit", "string", "noop, zero, mean, donor, ordinary, redirect, control, random or other_head: see the concepts"
    ),
    Column("draw", "int32", "number of the random draw, from 0"),
    Column("donor", "string", "name of the input that the value comes from; null but for donor and ordinary"),
    Column("budget", "float32", "weight on the keys of a control / weight on the sink; null for other edits"),
    Column(
        "write",
        "float32",
        "sqrt(sum |du_i|^2 / sum |u_i|^2) over valid queries other than the sink, u = g * W_O o the write of the head "
        "that is changed; null without projection",
    ),
    Column("final", "float32", "RMS of the change of the last block's valid tokens other than the sink / their RMS"),
    Column("final_norm", "float32", "the same after the model's last norm; null where there is none"),
    Column(
        "common",
        "float32",
        "n |mean d_i|^2 / sum |d_i|^2, d the change of the final tokens (after the last norm if there is one) over the "
        "n valid queries that see the sink, itself aside; null where nothing changes",
    ),
    Column(
        "output_kl",
        "float32",
        "mean over valid positions of KL(before || after) of the model's output; null without such a head",
        "nat",
    ),
    Column("output_top1", "float32", "share of valid positions whose most likely output stays the same"),
    Column(
        "output_loss", "float32", "change of the loss on the input's own next tokens; null but for causal LMs", "nat"
    ),
)
"""One row per input, layer, head, edit and draw, in `edits/part-LLL-BBBBB.parquet`; later rounds end in `-R`."""

_FOLDER = "edits"
_PART = re.compile(r"^part-(\d{3,})-(\d{5,})(?:-(\d+))?\.parquet$")
_WITH_CHANGE = ("zero", "donor")


def edit_schema() -> pa.Schema:
    """Arrow schema of a part of edits."""
    return pa.schema([(column.name, pa.type_for_alias(column.kind)) for column in EDIT_COLUMNS])


def write_edits(
    path: Path,
    layer: int,
    batch: int,
    edits: pd.DataFrame,
    change: Float[np.ndarray, "changes residual"],
    rows: Int[np.ndarray, " changes"],
    *,
    number: int = 0,
) -> None:
    """Write the part of a layer and a batch. It counts as done once its parquet file has its name, which is last.

    **Arguments:**

    - `path`: the artifact's folder.
    - `edits`: the columns of EDIT_COLUMNS; missing is None or NaN.
    - `change`: mean change of the final tokens of the recipients, for `zero` and `donor`.
    - `rows`: which row of `edits` each of them belongs to, in order.
    - `number`: of the round.

    **Raises:** `ArtifactError` when columns do not fit, or the file cannot be written; `ResourceError` when the disk is
    full.
    """
    table = exact_table(edits, edit_schema(), "part of edits")
    part = _part(path, layer, batch, number)
    write_tensors(part.with_suffix(".safetensors"), {"change": change.astype(np.float32), "rows": rows.astype("int32")})
    write_table(part, table)


def done_edits(path: Path, number: int = 0) -> frozenset[tuple[int, int]]:
    """(layer, batch) of the parts of a round that are complete."""
    return frozenset((layer, batch) for layer, batch, of in _parts(path) if of == number)


def _parts(path: Path) -> list[tuple[int, int, int]]:
    """Layer, batch and round of all parts."""
    found = (_PART.match(file.name) for file in (path / _FOLDER).glob("part-*.parquet"))
    return sorted((int(match[1]), int(match[2]), int(match[3] or 0)) for match in found if match)


def read_edits(path: Path | str) -> pd.DataFrame:
    """All edits of a verified diagnosis, by layer, batch and round: the columns of EDIT_COLUMNS and `donor_cosine`.

    `donor_cosine` (float64, for `donor` rows, else NaN) is the cosine of the mean change of the recipients with what
    the donor's sink hands out minus what the own sink hands out: the change under `zero` on this input minus the one
    under `zero` on the donor. NaN where nothing changes or the donor was not itself edited.

    **Arguments:**

    - `path`: the artifact's folder.

    **Raises:** `ArtifactError` when there are no edits, or a part is missing or damaged.
    """
    folder = Path(path)
    numbers = _parts(folder)
    if not numbers:
        raise ArtifactError(f"{folder} has no edits", "edits/part-000-00000.parquet", f"run sinkscope verify {folder}")
    frames, cosines = [], []
    for layer in sorted({layer for layer, _, _ in numbers}):
        parts = [_read_part(_part(folder, *part)) for part in numbers if part[0] == layer]
        frames.append(pd.concat([frame for frame, _ in parts], ignore_index=True))
        cosines.append(_donor_cosines(frames[-1], np.concatenate([change for _, change in parts])))
    return pd.concat(frames, ignore_index=True).assign(donor_cosine=np.concatenate(cosines))


def _read_part(part: Path) -> tuple[pd.DataFrame, Float[np.ndarray, "changes residual"]]:
    """The rows, and the changes of those that have one, in their order."""
    repair = f"delete {part} and run sinkscope verify {part.parents[1]} again: it makes this part anew"
    table = reading(part, lambda path: pq.ParquetFile(path).read(), repair)
    if table.column_names != edit_schema().names:
        raise damaged(part, f"its columns are {', '.join(table.column_names)}", repair)
    arrays = Tensors(part.with_suffix(".safetensors"))
    rows, change = arrays["rows"], arrays["change"]
    frame = to_pandas(table)
    if not np.array_equal(rows, np.flatnonzero(frame["edit"].isin(_WITH_CHANGE))):
        raise damaged(part.with_suffix(".safetensors"), "its rows are not those of the parquet file beside it", repair)
    return frame, change


def _donor_cosines(frame: pd.DataFrame, change: Float[np.ndarray, "changes residual"]) -> Float[np.ndarray, " rows"]:
    """Per row of one layer's edits, whose changes are given in the order of its rows of `zero` and `donor`."""
    kept = np.flatnonzero(frame["edit"].isin(_WITH_CHANGE).to_numpy())
    edits, inputs, heads, donors = (frame[name].to_numpy()[kept] for name in ("edit", "input", "head", "donor"))
    zeros = {(heads[i], inputs[i]): change[i] for i in np.flatnonzero(edits == "zero")}
    found = np.full(len(frame), np.nan)
    for i in np.flatnonzero(edits == "donor"):
        own, other = zeros.get((heads[i], inputs[i])), zeros.get((heads[i], donors[i]))
        if own is not None and other is not None:
            found[kept[i]] = _cosine(change[i], own - other)
    return found


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms > 0 else float("nan")


def _part(path: Path, layer: int, batch: int, number: int) -> Path:
    later = f"-{number}" if number else ""
    return path / _FOLDER / f"part-{layer:03d}-{batch:05d}{later}.parquet"
