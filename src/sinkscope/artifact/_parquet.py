"""Parquet files of an artifact: written in one step, read under the schemas they must have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ._files import replacing
from ._manifest import damaged
from ._tables import to_pandas


def write_table(path: Path, table: pa.Table) -> None:
    """Replace the file `path` in one step. **Raises:** as `replacing`."""
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def read_table(path: Path, *schemas: pa.Schema, repair: str | None = None) -> pd.DataFrame:
    """The table in `path`, whose columns are those of one of `schemas`.

    **Raises:** `ArtifactError` when it is damaged, with `repair` or the run's command as the next step.
    """
    table = reading(path, pq.read_table, repair)
    if table.column_names not in [schema.names for schema in schemas]:
        raise damaged(path, f"its columns are {', '.join(table.column_names)}", repair)
    return to_pandas(table)


def reading(path: Path, read: Callable[[Path], Any], repair: str | None = None) -> Any:
    """What `read` makes of `path`. **Raises:** `ArtifactError` when it is damaged."""
    try:
        return read(path)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise damaged(path, str(error), repair) from error
