"""Reading a finished artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from .._errors import ArtifactError, OptionError
from ._gallery import GalleryItem, read_gallery
from ._manifest import read_manifest
from ._parquet import read_table, reading
from ._run import Run, part_facts
from ._tables import head_schema, to_pandas
from ._tensors import Tensors
from ._verdicts import read_effects, read_verdicts


def open_artifact(path: Path | str) -> Artifact:
    """Open the artifact in the folder `path`.

    **Raises:** `ArtifactError` when the folder is missing or no artifact, when its manifest is damaged or of a newer
    schema, or when the run is not finished.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if not manifest["finished"]:
        raise ArtifactError(
            f"{folder} is an unfinished run ({len(Run(folder, manifest).done())} parts done)",
            "a finished one",
            f"run its command again, it goes on where it stopped: {manifest['command']}",
        )
    return Artifact(folder, dict(manifest))


@dataclass(frozen=True)
class Artifact:
    """What a finished run has found. Tables and arrays are read when asked for.

    - `path`: the folder.
    - `manifest`: the content of `manifest.json`.
    """

    path: Path
    manifest: dict[str, Any]

    def events(self, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per input, layer and head, in the order of the inputs.

        Integers that may be null (`sink`, `row`, `col`) have pandas' nullable dtypes, lists stay Arrow lists, a
        missing float is NaN.

        **Arguments:**

        - `columns`: only these, in this order; None for all.

        **Raises:** `OptionError` when a column does not exist; `ArtifactError` when a part is missing or damaged.
        """
        paths = sorted((self.path / "events").glob("part-*.parquet"), key=lambda path: (len(path.name), path.name))
        if not paths:
            raise ArtifactError(
                f"{self.path} has no event parts", "events/part-00000.parquet", _run_again(self.manifest["command"])
            )
        names = reading(paths[0], pq.read_schema).names
        if unknown := [name for name in columns or () if name not in names]:
            raise OptionError(
                f"events of {self.path} have no column {', '.join(unknown)}",
                f"columns among {', '.join(names)}",
                "correct the name",
            )
        wanted = names if columns is None else list(columns)
        tables = [reading(path, lambda path: pq.ParquetFile(path).read(wanted).select(wanted)) for path in paths]
        counted = sum(part_facts(path)["n_inputs"] for path in paths)
        if counted != self.manifest["n_inputs"]:
            raise ArtifactError(
                f"{self.path / 'events'} has parts of {counted} inputs",
                f"all parts, of {self.manifest['n_inputs']} inputs",
                _run_again(self.manifest["command"]),
            )
        return to_pandas(pa.concat_tables([table.replace_schema_metadata() for table in tables]))

    @cached_property
    def heads(self) -> pd.DataFrame:
        """One row per layer and head, with verdict columns once heads have been edited.

        **Raises:** `ArtifactError` when the table is missing or damaged.
        """
        path = self.path / "heads.parquet"
        if not path.is_file():
            raise ArtifactError(f"there is no {path}", "the table of heads", _run_again(self.manifest["command"]))
        return read_table(path, head_schema(), head_schema(verified=True))

    @cached_property
    def verdicts(self) -> pd.DataFrame | None:
        """One row per edited head, None before any was edited. **Raises:** `ArtifactError` when it is damaged."""
        return read_verdicts(self.path)

    @cached_property
    def effects(self) -> pd.DataFrame | None:
        """One row per edited head, edit and measure, None before any was edited.

        **Raises:** `ArtifactError` when it is damaged.
        """
        return read_effects(self.path)

    @cached_property
    def vectors(self) -> Mapping[str, np.ndarray]:
        """Arrays of `vectors.safetensors`, each read when it is asked for and not kept.

        **Raises:** `ArtifactError` when the file is missing or damaged.
        """
        return Tensors(self.path / "vectors.safetensors")

    @property
    def gallery(self) -> list[GalleryItem]:
        """The first inputs with the mass of every token; empty when the run made no gallery."""
        return read_gallery(self.path / "gallery")


def _run_again(command: str) -> str:
    return f"run the run's command again, it writes what is missing: {command}"
