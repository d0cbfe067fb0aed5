"""Datasets in the layout of the hub: parquet files read here, names of the hub through the datasets library."""

from __future__ import annotations

import hashlib
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from sinkscope._errors import InputError, MissingExtraError
from sinkscope.models._pictures import read_picture, to_rgb
from sinkscope.models._types import Modality

_GROUPS_KEPT = 2
"""Row groups in memory: the one being read and, for a batch across their border, the one before."""
_PICTURE_NAMES = ("image", "img", "picture")
_LABEL_NAMES = ("label", "labels", "fine_label", "class")


class Column(Protocol):
    """One column of a dataset; rows are read when they are asked for."""

    def __len__(self) -> int: ...

    def value(self, index: int) -> Any: ...

    def labels(self, count: int) -> tuple[int, ...] | None:
        """The column of classes beside it, of the first `count` rows; None without one."""
        ...

    def origin(self) -> dict[str, Any]:
        """Kind, location and hash."""
        ...


class ParquetColumn:
    """A column of one or several parquet files, read one row group at a time."""

    def __init__(self, paths: Sequence[Path], modality: Modality) -> None:
        import pyarrow.parquet as pq

        self._paths = paths
        self._groups: list[tuple[Any, int]] = []
        self._starts: list[int] = []
        self._rows = 0
        for path in paths:
            try:
                file = pq.ParquetFile(path)
            except Exception as error:
                # pyarrow raises ArrowInvalid, OSError or ArrowNotImplementedError for what it cannot read.
                raise InputError(
                    f"{path}, which is no readable parquet file ({error})", "a whole parquet file", "fetch it again"
                ) from None
            if not self._groups:
                self._column = _column_of(file.schema_arrow, modality, str(path))
            for group in range(file.num_row_groups):
                self._groups.append((file, group))
                self._starts.append(self._rows)
                self._rows += file.metadata.row_group(group).num_rows
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._reading = threading.Lock()

    def __len__(self) -> int:
        return self._rows

    def value(self, index: int) -> Any:
        number = bisect_right(self._starts, index) - 1
        with self._reading:
            if number not in self._kept:
                file, group = self._groups[number]
                self._kept[number] = file.read_row_group(group, columns=[self._column]).column(0)
                if len(self._kept) > _GROUPS_KEPT:
                    self._kept.popitem(last=False)
            column = self._kept[number]
        return column[index - self._starts[number]].as_py()

    def labels(self, count: int) -> tuple[int, ...] | None:
        name = _label_column(self._groups[0][0].schema_arrow)
        if name is None:
            return None
        found: list[int] = []
        for file, group in self._groups:
            if len(found) < count:
                found += file.read_row_group(group, columns=[name]).column(0).to_pylist()
        return _classes(name, found[:count])

    def origin(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for path in self._paths:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        location = self._paths[0] if len(self._paths) == 1 else self._paths[0].parent
        return {"kind": "dataset", "location": str(location.resolve()), "sha256": digest.hexdigest()}


class HubColumn:
    """A column of a dataset of the hub, given as `NAME` or `NAME:SPLIT`."""

    def __init__(self, name: str, modality: Modality) -> None:
        try:
            import datasets
        except ImportError:
            raise MissingExtraError(
                f"the dataset {name} of the hub needs datasets, which is not installed",
                "the train extra, or the path of a parquet file",
                'pip install "sinkscope[train]"',
            ) from None
        repository, _, split = name.partition(":")
        try:
            splits = [split] if split else datasets.get_dataset_split_names(repository)
            if len(splits) > 1:
                raise InputError(
                    f"the dataset {repository} without a split",
                    f"one of {', '.join(splits)}",
                    f"{repository}:{splits[-1]}",
                )
            table = datasets.load_dataset(repository, split=splits[0])
        except InputError:
            raise
        except Exception as error:
            # A missing name, split or configuration, no network, and a broken download each raise a class of their own.
            raise InputError(
                f"the dataset {name}, which cannot be loaded ({str(error).splitlines()[0] if str(error) else error!r})",
                "a parquet file, or NAME or NAME:SPLIT of a dataset of the hub",
                "check the name and the network, or give the path of a parquet file",
            ) from None
        self._name = f"{repository}:{splits[0]}"
        column = _column_of(table.features.arrow_schema, modality, self._name)
        if isinstance(table.features[column], datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
        self._table, self._column = table, column

    def __len__(self) -> int:
        return len(self._table)

    def value(self, index: int) -> Any:
        return self._table[index][self._column]

    def labels(self, count: int) -> tuple[int, ...] | None:
        name = _label_column(self._table.features.arrow_schema)
        return None if name is None else _classes(name, self._table[:count][name])

    def origin(self) -> dict[str, Any]:
        return {"kind": "dataset", "location": self._name, "sha256": None, "fingerprint": self._table._fingerprint}


@dataclass(frozen=True)
class DatasetPictures:
    """Pictures in a column: a struct of bytes and path, bytes, or a path; names are running numbers."""

    column: Column
    folder: Path

    def __len__(self) -> int:
        return len(self.column)

    def name(self, index: int) -> str:
        return str(index)

    def open(self, index: int) -> Image.Image:
        value, name = self.column.value(index), f"row {index}"
        if isinstance(value, Image.Image):
            return to_rgb(value, name)
        if isinstance(value, dict):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return read_picture(value, name)
        if isinstance(value, str):
            return read_picture(self.folder / value, f"{name} ({value})")
        raise InputError(f"{name} without a picture", "bytes or a path", "leave it out with --skip-bad")

    def labels(self, count: int) -> tuple[int, ...] | None:
        """Classes of the first `count` pictures; None where there are none."""
        return self.column.labels(count)

    def identity(self, count: int) -> dict[str, Any]:
        return self.column.origin()


def _column_of(schema: Any, modality: Modality, where: str) -> str:
    """The column that holds pictures or text, by name first, then if there is only one of its type."""
    import pyarrow as pa

    def fits(field: Any) -> bool:
        if modality == "text":
            return bool(pa.types.is_string(field.type) or pa.types.is_large_string(field.type))
        has_bytes = pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        return bool(has_bytes or pa.types.is_binary(field.type) or field.name in _PICTURE_NAMES)

    fitting = [field.name for field in schema if fits(field)]
    preferred = [name for name in (*_PICTURE_NAMES, "text") if name in fitting]
    if preferred or len(fitting) == 1:
        return str((preferred or fitting)[0])
    what = "text" if modality == "text" else "pictures"
    raise InputError(
        f"{where} with columns {', '.join(schema.names)}, {'none' if not fitting else 'several'} of {what}",
        "a column named text" if modality == "text" else "a column named image or img, of bytes or paths",
        "rename the column",
    )


def _label_column(schema: Any) -> str | None:
    import pyarrow as pa

    whole = {field.name for field in schema if pa.types.is_integer(field.type)}
    return next((name for name in _LABEL_NAMES if name in whole), None)


def _classes(name: str, values: Sequence[int | None]) -> tuple[int, ...]:
    missing = next((index for index, value in enumerate(values) if value is None or value < 0), None)
    if missing is not None:
        raise InputError(
            f"row {missing} with {name} {values[missing]}", "whole numbers from 0 on", "leave such rows out"
        )
    return tuple(value for value in values if value is not None)
