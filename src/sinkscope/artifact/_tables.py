"""The artifact's tables as Arrow schemas, and their way to and from pandas."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from .._errors import ArtifactError
from ._schema import (
    EFFECT_COLUMNS,
    EVENT_COLUMNS,
    ROW_COLUMNS,
    SAMPLED_COLUMNS,
    Column,
    head_columns,
    verdict_columns,
)

_NEVER_NULL = ("layer", "head", "n_inputs", "n")


def event_schema(sampled: bool, row_sums: bool = False) -> pa.Schema:
    """Arrow schema of an event part; `sampled` runs have the columns of SAMPLED_COLUMNS too, those with rows that do
    not sum to one (`row_sums`) the ones of ROW_COLUMNS."""
    return _schema((*EVENT_COLUMNS, *(SAMPLED_COLUMNS if sampled else ()), *(ROW_COLUMNS if row_sums else ())))


def head_schema(verified: bool = False) -> pa.Schema:
    """Arrow schema of `heads.parquet`; `verified` with the columns that edits add."""
    return _schema(head_columns(verified=verified))


def verdict_schema() -> pa.Schema:
    """Arrow schema of `verdicts.parquet`."""
    return _schema(verdict_columns())


def effect_schema() -> pa.Schema:
    """Arrow schema of `effects.parquet`."""
    return _schema(EFFECT_COLUMNS)


def comparison_schema(columns: Iterable[Column]) -> pa.Schema:
    """Arrow schema of a table of a comparison."""
    return _schema(columns)


def event_table(events: pa.Table | Mapping[str, Sequence[Any]], sampled: bool) -> pa.Table:
    """Event rows under exactly the event schema; a float that is NaN becomes null.

    **Arguments:**

    - `events`: a table, or one sequence per column, all of one length. Missing is None or NaN.
    - `sampled`: whether the run looks at sampled queries only.

    **Raises:** `ArtifactError` when columns are missing, unknown, of other types or of unequal length.
    """
    names = events.column_names if isinstance(events, pa.Table) else list(events)
    row_sums = any(column.name in names for column in ROW_COLUMNS)
    return _exact_rows(events, event_schema(sampled, row_sums), "event part")


def table_of(rows: Mapping[str, Sequence[Any]], columns: Iterable[Column], what: str) -> pa.Table:
    """One sequence per column, all of one length, as a table of exactly these columns; NaN becomes null.

    **Raises:** `ArtifactError` when columns are missing, unknown, of other types or of unequal length.
    """
    return _exact_rows(rows, _schema(columns), what)


def _exact_rows(rows: pa.Table | Mapping[str, Sequence[Any]], schema: pa.Schema, what: str) -> pa.Table:
    _require_names(rows.column_names if isinstance(rows, pa.Table) else list(rows), schema.names, what)
    try:
        if not isinstance(rows, pa.Table):
            rows = pa.table({name: pa.array(_flat(rows[name]), schema.field(name).type) for name in schema.names})
        table = rows.select(schema.names).cast(schema)
    except (pa.ArrowException, TypeError, UnicodeEncodeError) as error:
        raise _misfit(what, schema, error) from error
    for index, field in enumerate(schema):
        if pa.types.is_floating(field.type):
            column = table.column(index)
            table = table.set_column(index, field, pc.if_else(pc.is_nan(column), None, column))
    return table


def head_table(heads: pd.DataFrame) -> pa.Table:
    """The head table under exactly the head schema, that with verdicts if there is any column of theirs.

    **Raises:** `ArtifactError` when columns do not fit.
    """
    plain = head_schema().names
    verified = any(name in heads.columns for name in head_schema(verified=True).names if name not in plain)
    return exact_table(heads, head_schema(verified), "head table")


def exact_table(frame: pd.DataFrame, schema: pa.Schema, what: str) -> pa.Table:
    """`frame` under exactly this schema. **Raises:** `ArtifactError` when names or types of columns do not fit."""
    _require_names(list(frame.columns), schema.names, what)
    try:
        table = pa.Table.from_pandas(frame[schema.names], schema=schema, preserve_index=False)
    except (pa.ArrowException, TypeError) as error:
        raise _misfit(what, schema, error) from error
    return table.replace_schema_metadata()


def _misfit(what: str, schema: pa.Schema, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"the {what} does not fit its columns ({error})",
        "columns of one length: " + ", ".join(f"{field.name} {field.type}" for field in schema),
        "convert the column named in the message",
    )


def to_pandas(table: pa.Table, never_null: Sequence[str] = _NEVER_NULL) -> pd.DataFrame:
    """A dataframe whose dtypes do not depend on the values: integers and booleans that may be null are pandas' nullable
    ones, lists stay Arrow lists, missing floats are NaN. The table's memory is given up on the way."""
    mapping: dict[Any, Any] = {pa.int32(): pd.Int32Dtype(), pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    mapping |= {field.type: pd.ArrowDtype(field.type) for field in table.schema if pa.types.is_list(field.type)}
    plain = {name: str(table.schema.field(name).type) for name in never_null if name in table.column_names}
    frame = table.to_pandas(types_mapper=mapping.get, split_blocks=True, self_destruct=True)
    return cast(pd.DataFrame, frame.astype(plain))


def _schema(columns: Iterable[Column]) -> pa.Schema:
    return pa.schema([(column.name, _arrow_type(column.kind)) for column in columns])


def _arrow_type(kind: str) -> Any:
    if kind.startswith("list<"):
        return pa.list_(pa.type_for_alias(kind.removeprefix("list<").removesuffix(">")))
    return pa.type_for_alias(kind)


def _flat(values: Any) -> Any:
    # Arrow takes a matrix only as a sequence of its rows.
    return list(values) if getattr(values, "ndim", 1) > 1 else values


def _require_names(names: Sequence[str], wanted: Sequence[str], what: str) -> None:
    missing = [name for name in wanted if name not in names]
    unknown = [name for name in names if name not in wanted]
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has the unknown {', '.join(unknown)}"] if unknown else []
        raise ArtifactError(
            f"the {what} {' and '.join(parts)}",
            f"the columns {', '.join(wanted)}",
            "pass exactly these columns",
        )
