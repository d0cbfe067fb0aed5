"""Writing an artifact, part by part, so that a killed run loses at most the part it was at."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from .._errors import ArtifactError
from ._files import is_temporary, remove_stale, replacing
from ._gallery import GalleryItem, gather, write_item
from ._manifest import MANIFEST, Manifest, damaged, differences, dumps, now, read_manifest, write_manifest
from ._parquet import write_table
from ._tables import event_table, head_table
from ._tensors import Tensors, write_tensors
from ._vectors import consolidate, part_vectors
from ._verdicts import read_verdicts, with_verdicts

if TYPE_CHECKING:
    import pandas as pd
    from PIL.Image import Image

_METADATA = b"sinkscope"
_PART = re.compile(r"^part-(\d{5,})\.parquet$")


class _PartFacts(TypedDict):
    n_inputs: int
    n_tokens: list[int] | None
    bad_inputs: dict[str, str]
    seconds: float


def require_free(out: Path) -> None:
    """Refuse a path that can hold no run, before any work is done for one.

    **Raises:** `ArtifactError` when `out` is a file, or a folder that holds something else than a run.
    """
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"{out} is a file", "a folder, new or empty", "choose another folder with --out")
    if not out.is_dir() or (out / MANIFEST).exists():
        return
    if strangers := sorted(p.name for p in out.iterdir() if not is_temporary(p)):
        raise ArtifactError(
            f"{out} belongs to something else (it holds {strangers[0]}"
            + (f" and {len(strangers) - 1} more)" if strangers[1:] else ")"),
            "a new folder, an empty one, or one of an earlier run",
            "choose another folder with --out",
        )


def open_run(out: Path, manifest: Manifest) -> Run:
    """Begin a run in `out`, or go on with the one that is there. One process per run calls this; in a torchrun world
    that is rank 0, and the others call `attach_run` once it has.

    The folder is made, with its parents. A manifest that is there already must be of the same schema, model, inputs,
    rule and options (device and number of workers aside); it is kept. Temporary files of dead writers are removed.

    **Raises:** `ArtifactError` when the folder belongs to another run (every difference is named), is damaged, or
    holds something else; `ResourceError` when the disk is full.
    """
    require_free(out)
    if out.is_dir():
        remove_stale(out)
    if (out / MANIFEST).exists():
        there = read_manifest(out)
        if differing := differences(there, manifest):
            raise ArtifactError(
                f"{out} belongs to another run ({'; '.join(differing)})",
                "the model, inputs, rule and options of the run that began there",
                f"choose another folder with --out, or go on with that run: {there['command']}",
            )
        return Run(out, there)
    write_manifest(out, manifest)
    return Run(out, manifest)


@contextmanager
def opened_run(out: Path, manifest: Manifest) -> Iterator[Run]:
    """As `open_run`; when the block fails before any part is done, everything is as it was before, folders included."""
    absent = [path for path in (out, *out.parents) if not path.exists()]
    try:
        run = open_run(out, manifest)
        try:
            yield run
        except BaseException:
            run.discard_unless_begun()
            raise
    except BaseException:
        for path in absent:
            with suppress(OSError):  # not empty after all
                path.rmdir()
        raise


def attach_run(out: Path) -> Run:
    """The run that another process has opened in `out`, to write parts of it.

    **Raises:** `ArtifactError` when no run has been opened there.
    """
    return Run(out, read_manifest(out))


class Run:
    """A run that is being written. Several processes may write parts of one run at the same time."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def sampled(self) -> bool:
        """Whether masses are estimated from sampled queries, so that events have `mass_se`."""
        return bool(self.manifest["options"].get("queries", "all") != "all")

    def done(self) -> frozenset[int]:
        """Numbers of the batches whose parts are complete."""
        if not self._capture_file().is_file():
            return frozenset()
        found = (_PART.match(path.name) for path in (self.path / "events").glob("part-*.parquet"))
        numbers = {int(match[1]) for match in found if match}
        return frozenset(number for number in numbers if self._vectors_part(number).is_file())

    def layers(self) -> list[dict[str, Any]]:
        """The layers of the recorded coverage, empty before `record_capture`."""
        if not self._capture_file().is_file():
            return []
        layers: list[dict[str, Any]] = json.loads(Tensors(self._capture_file()).metadata["coverage"])["layers"]
        return layers

    def record_capture(
        self, coverage: Mapping[str, Any], gram: Float[np.ndarray, "layers heads head_dim head_dim"] | None
    ) -> None:
        """Keep what the first batch tells about the model, so that a later process can finish the run without it.
        Call it before the first `write_part`; any process may, as often as it likes.

        **Arguments:**

        - `coverage`: the manifest's coverage, without `bad_inputs` (parts know those).
        - `gram`: M = W_O^h^T diag(g^2) W_O^h per head, zero padded, NaN for heads without projection; None when no
          head has one.

        **Raises:** `ArtifactError`, `ResourceError` when it cannot be written.
        """
        arrays = {} if gram is None else {"gram": gram.astype(np.float32)}
        write_tensors(self._capture_file(), arrays, {"coverage": dumps(dict(coverage))})

    def write_part(
        self,
        index: int,
        events: pa.Table | Mapping[str, Sequence[Any]],
        vectors: Mapping[str, np.ndarray],
        *,
        n_tokens: tuple[int, int] | None = None,
        bad_inputs: Mapping[str, str] | None = None,
        seconds: float = 0.0,
    ) -> None:
        """Write the part of batch `index`. The part counts as done once its event file has its name, which is last.

        **Arguments:**

        - `events`: the event columns, rows sorted by input, layer, head; a NaN becomes null.
        - `vectors`: the arrays of PART_VECTORS.
        - `n_tokens`: smallest and largest number of valid tokens in the batch.
        - `bad_inputs`: inputs left out of the batch, name to reason.
        - `seconds`: time it took.

        **Raises:** `ArtifactError` when columns or arrays do not fit; `ResourceError` when the disk is full.
        """
        if not self._capture_file().is_file():
            raise ArtifactError(
                f"{self.path} has no {self._capture_file().name} yet",
                "what the first batch tells about the model, before any part",
                "call Run.record_capture first",
            )
        table, arrays = event_table(events, self.sampled), part_vectors(vectors)
        n_inputs = arrays["energy"].shape[0]
        _require_same_inputs(index, table, n_inputs)
        facts = _PartFacts(
            n_inputs=n_inputs,
            n_tokens=list(n_tokens) if n_tokens and n_inputs else None,
            bad_inputs=dict(bad_inputs or {}),
            seconds=seconds,
        )
        write_tensors(self._vectors_part(index), arrays)
        with replacing(self._events_part(index)) as temporary:
            pq.write_table(table.replace_schema_metadata({_METADATA: dumps(facts)}), temporary, compression="zstd")

    def write_gallery(self, number: int, item: GalleryItem, picture: Image | None = None) -> None:
        """Keep a gallery item; the first GALLERY_SIZE by `number` make the gallery. Call it before the `write_part`
        of the input's batch, else a killed run may miss it.

        **Arguments:**

        - `number`: place of the input among all inputs of the run.
        - `item`: its `picture` is not looked at.
        - `picture`: what the model saw.

        **Raises:** `ArtifactError`, `ResourceError` when it cannot be written.
        """
        write_item(self.path / "gallery", number, item, picture)

    def finish(self, n_batches: int | None = None) -> None:
        """Make one file of the vectors, gather the gallery, and complete the manifest. One process calls this, when
        all parts are there; calling it again does no harm.

        **Arguments:**

        - `n_batches`: how many parts there must be, None if only the inputs' end told.

        **Raises:** `ArtifactError` when parts are missing or damaged; `ResourceError` when the disk is full.
        """
        numbers = sorted(self.done())
        wanted = range(n_batches or max(numbers, default=0) + 1)
        if missing := sorted(set(wanted) - set(numbers)):
            raise ArtifactError(
                f"{self.path} lacks {len(missing)} of {len(wanted)} parts, the first is number {missing[0]}",
                "every part before a run is finished",
                f"run the same command again: {self.manifest['command']}",
            )
        capture = Tensors(self._capture_file())
        parts = [self._vectors_part(number) for number in numbers]
        consolidate(self.path / "vectors.safetensors", parts, capture.get("gram"))
        if list((self.path / "gallery").glob("item-*.safetensors")):
            gather(self.path / "gallery")
        facts = [part_facts(self._events_part(number)) for number in numbers]
        lengths = [length for fact in facts for length in fact["n_tokens"] or ()]
        bad_inputs = {name: reason for fact in facts for name, reason in fact["bad_inputs"].items()}
        self.manifest["coverage"] = json.loads(capture.metadata["coverage"]) | {"bad_inputs": bad_inputs}
        self.manifest["n_inputs"] = sum(fact["n_inputs"] for fact in facts)
        self.manifest["n_tokens"] = [min(lengths), max(lengths)] if lengths else None
        self.manifest["seconds"] = round(sum(fact["seconds"] for fact in facts), 3)
        self.manifest["finished"] = self.manifest["finished"] or now()
        write_manifest(self.path, self.manifest)

    def write_heads(self, heads: pd.DataFrame) -> None:
        """Write `heads.parquet`, with the verdicts if heads have been edited.

        **Raises:** `ArtifactError` when the columns are not exactly those of the schema.
        """
        verdicts = read_verdicts(self.path)
        whole = heads if verdicts is None else with_verdicts(heads, verdicts)
        write_table(self.path / "heads.parquet", head_table(whole))

    def discard_unless_begun(self) -> None:
        """Remove what the run has written, unless there is any part of it; its folder stays."""
        if self.manifest["finished"] or any((self.path / "events").glob("part-*.parquet")):
            return
        for folder in ("events", "vectors", "gallery"):
            shutil.rmtree(self.path / folder, ignore_errors=True)
        (self.path / MANIFEST).unlink(missing_ok=True)

    def _events_part(self, index: int) -> Path:
        return self.path / "events" / f"part-{index:05d}.parquet"

    def _vectors_part(self, index: int) -> Path:
        return self.path / "vectors" / f"part-{index:05d}.safetensors"

    def _capture_file(self) -> Path:
        return self.path / "vectors" / "capture.safetensors"


def _require_same_inputs(index: int, table: pa.Table, n_inputs: int) -> None:
    rows = set(table.select(["layer", "head"]).to_pandas().value_counts()) or {0}
    if rows != {n_inputs}:
        raise ArtifactError(
            f"part {index} has {n_inputs} inputs in its vectors, and heads with {min(rows)} to {max(rows)} event rows",
            "one row per input, layer and head",
            "pass the events and the vectors of the same batch",
        )


def part_facts(path: Path) -> _PartFacts:
    """What the part in the event file `path` is about. **Raises:** `ArtifactError` when it is damaged."""
    try:
        facts: _PartFacts = json.loads(pq.read_metadata(path).metadata[_METADATA])
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise damaged(path, str(error)) from error
    return facts
