"""What a comparison of diagnoses leaves behind: a folder of three tables and `comparison.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from .._errors import ArtifactError
from ._files import write_text
from ._manifest import damaged, dumps
from ._parquet import reading, write_table
from ._schema import Column
from ._tables import comparison_schema, exact_table, to_pandas

COMPARISON = "comparison.json"
COMPARED_RATES: tuple[str, ...] = ("event_rate", "sink_rate", "mass")
"""What is compared head by head."""

MEASURE_COLUMNS: tuple[Column, ...] = (
    Column("model", "int32", "number of the diagnosis, from 0, which is the base"),
    Column("group", "string", "sinks, roles, classes, kinds, norms, writes, verdicts, outputs or outliers"),
    Column("measure", "string", "what was measured, as the list of measures names it"),
    Column("layer", "int32", "layer; null for numbers of the whole model"),
    Column("unit", "string", "share, heads, energy, ratio, nat, cosine, change, kurtosis or activation"),
    Column("value", "float64", "of this model; of agreement measures: with the base"),
    Column("low", "float64", "bootstrap 95% interval over inputs; null where it has none or all resamples agree"),
    Column("high", "float64", "upper end"),
    Column("n", "int64", "inputs that count"),
    Column("change", "float64", "value minus that of the base; null for the base and for agreement measures"),
    Column("change_low", "float64", "bootstrap 95% interval of the change, paired over inputs where they are the same"),
    Column("change_high", "float64", "upper end"),
)
"""One row per model, measure and, where it has layers, layer, in `comparison.parquet`."""

COMPARED_HEAD_COLUMNS: tuple[Column, ...] = (
    Column("model", "int32", "number of the diagnosis that is compared with the base, from 1"),
    Column("layer", "int32", "running number of the self-attention call, from 0"),
    Column("head", "int32", "query head, from 0"),
    Column("before", "string", "in the base: the verdict; sink if it was not edited; else the kind"),
    Column("after", "string", "the same in the compared diagnosis"),
    *(
        Column(f"{name}{end}", "float64", meaning)
        for name in COMPARED_RATES
        for end, meaning in (
            ("_before", f"{'mean mass on the sink' if name == 'mass' else name} of the base"),
            ("_after", "of the compared diagnosis"),
            ("_change", "after minus before"),
            ("_change_low", "its bootstrap 95% interval over inputs; null where all resamples agree"),
            ("_change_high", "upper end"),
        )
    ),
)
"""One row per compared diagnosis and head, where both have the same layers and heads, in `heads.parquet`."""

COMPARED_INPUT_COLUMNS: tuple[Column, ...] = (
    Column("model", "int32", "number of the diagnosis, from 0; that of the base has a loss and an accuracy at most"),
    Column("input", "string", "name of the input"),
    Column("final_change", "float64", "relative RMS difference of the final tokens from the base's"),
    Column("final_cosine", "float64", "mean over tokens of the cosine of final tokens with the base's"),
    Column("output_kl", "float64", "KL divergence of the output's distribution from the base's", "nat"),
    Column("output_top1", "float64", "share of positions with the base's first choice"),
    Column("loss", "float64", "next-token cross-entropy of a language model", "nat"),
    Column("accuracy", "float64", "1 where the largest logit is that of the label, else 0"),
)
"""One row per model and input that both were run on, in `inputs.parquet`."""

_TABLES = {
    "comparison.parquet": MEASURE_COLUMNS,
    "heads.parquet": COMPARED_HEAD_COLUMNS,
    "inputs.parquet": COMPARED_INPUT_COLUMNS,
}


@dataclass(frozen=True)
class ComparisonTables:
    """The content of a comparison's folder.

    - `facts`: `comparison.json`.
    - `measures`, `heads`, `inputs`: the tables.
    """

    facts: Mapping[str, Any]
    measures: pd.DataFrame
    heads: pd.DataFrame
    inputs: pd.DataFrame


def write_comparison(out: Path, tables: ComparisonTables) -> None:
    """Write a comparison into the folder `out`, in place of one that is there.

    **Raises:** `ArtifactError` when the folder holds something else, columns do not fit, or a file cannot be written;
    `ResourceError` when the disk is full.
    """
    require_comparison_folder(out)
    for (name, columns), frame in zip(_TABLES.items(), (tables.measures, tables.heads, tables.inputs), strict=True):
        write_table(out / name, exact_table(frame, comparison_schema(columns), name))
    write_text(out / COMPARISON, dumps(dict(tables.facts)))


def require_comparison_folder(out: Path) -> None:
    """**Raises:** `ArtifactError` unless `out` is new, empty or holds a comparison."""
    if out.is_dir() and any(out.iterdir()) and not (out / COMPARISON).is_file():
        raise ArtifactError(
            f"{out} is a folder that holds no comparison",
            "a new folder, or one of a comparison",
            "choose another --out",
        )
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"{out} is a file", "a folder, new or not", "choose another --out")


def read_comparison(out: Path) -> ComparisonTables:
    """The comparison in the folder `out`. **Raises:** `ArtifactError` when there is none, or it is damaged."""
    path, again = out / COMPARISON, f"run sinkscope compare again with --out {out}"
    if not path.is_file():
        raise ArtifactError(f"{out} holds no {COMPARISON}", "a folder that sinkscope compare has written", again)
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, str(error), again) from error
    return ComparisonTables(facts, *(_read(out / name, columns, again) for name, columns in _TABLES.items()))


def _read(path: Path, columns: tuple[Column, ...], repair: str) -> pd.DataFrame:
    table = reading(path, pq.read_table, repair)
    if table.schema != comparison_schema(columns):
        raise damaged(path, f"its columns are {', '.join(table.column_names)}", repair)
    return to_pandas(table, ("model",) if columns is MEASURE_COLUMNS else ("model", "layer", "head"))
