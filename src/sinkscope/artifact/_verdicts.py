"""What causal edits add to a finished artifact: verdicts, their evidence, and the columns of the head table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa

from .._errors import ArtifactError
from ._parquet import read_table, write_table
from ._schema import head_columns
from ._tables import effect_schema, exact_table, head_schema, head_table, verdict_schema

VERDICTS = "verdicts.parquet"
EFFECTS = "effects.parquet"


def write_verdicts(out: Path, heads: pd.DataFrame, verdicts: pd.DataFrame, effects: pd.DataFrame) -> None:
    """Write `effects.parquet`, `verdicts.parquet` and, last, `heads.parquet` with verdict columns, each in one step.

    **Arguments:**

    - `out`: the folder of a finished artifact.
    - `heads`: its head table, with or without verdicts.
    - `verdicts`: the columns of `verdict_columns()`.
    - `effects`: the columns of `EFFECT_COLUMNS`.

    **Raises:** `ArtifactError` when columns do not fit or a file cannot be written; `ResourceError` when the disk is
    full.
    """
    tables = {
        EFFECTS: exact_table(effects, effect_schema(), "table of effects"),
        VERDICTS: exact_table(verdicts, verdict_schema(), "table of verdicts"),
        "heads.parquet": head_table(with_verdicts(heads, verdicts)),
    }
    for name, table in tables.items():
        write_table(out / name, table)


def read_verdicts(out: Path) -> pd.DataFrame | None:
    """The table of verdicts, None when no head was edited. **Raises:** `ArtifactError` when it is damaged."""
    return _read(out / VERDICTS, verdict_schema())


def read_effects(out: Path) -> pd.DataFrame | None:
    """The table of effects, None when no head was edited. **Raises:** `ArtifactError` when it is damaged."""
    return _read(out / EFFECTS, effect_schema())


def _read(path: Path, schema: pa.Schema) -> pd.DataFrame | None:
    repair = f"delete {path} and run sinkscope verify {path.parent} again"
    return read_table(path, schema, repair=repair) if path.is_file() else None


def without_verdicts(heads: pd.DataFrame) -> pd.DataFrame:
    """The head table as it was before edits."""
    return heads[[column.name for column in head_columns()]]


def with_verdicts(heads: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """The head table with verdict columns. Heads without a verdict are `no sink` if they are no sinks, else null.

    **Raises:** `ArtifactError` when there is a verdict on a head that is not in the table.
    """
    plain, keys = without_verdicts(heads), ["layer", "head"]
    names = [name for name in head_schema(verified=True).names if name not in plain.columns]
    if strangers := len(verdicts) - len(plain.merge(verdicts[keys], on=keys)):
        raise ArtifactError(
            f"verdicts on {strangers} heads that are not in the head table",
            "verdicts on heads of the same diagnosis",
            f"delete {VERDICTS} and {EFFECTS}, and verify again",
        )
    joined = plain.merge(verdicts[[*keys, *names]], on=keys, how="left", validate="one_to_one")
    unsaid = joined["verdict"].isna() & (joined["kind"] != "sink")
    joined["verdict"] = joined["verdict"].astype(object).mask(unsaid, "no sink")
    return joined.astype(dict.fromkeys(keys, "int32"))
