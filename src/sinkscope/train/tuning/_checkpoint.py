"""What an interrupted tuning goes on from: one file of tensors with the progress in its head, replaced in one step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from sinkscope._errors import ArtifactError, SinkError
from sinkscope.artifact import replacing, write_text
from sinkscope.train.tuning._loop import Progress, from_plain, plain

FOLDER, OPTIONS = "checkpoint", "options.json"
SCHEMA = 1
_BUFFER = "buffer/"


@dataclass(frozen=True)
class Checkpoint:
    """One file of tensors.

    - `path`: of the file.
    - `buffers`: of the treatments; they are not learned, but set by a probe. Put back when the file is read.
    """

    path: Path
    buffers: Mapping[str, Shaped[Tensor, "..."]]

    def read(self) -> tuple[Progress, Mapping[str, Tensor]] | None:
        """Progress, and tensors by name; None if there is no file.

        **Raises:** `ArtifactError` for a damaged file.
        """
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as file:
                progress = from_plain(json.loads(file.metadata()["progress"]))
                tensors = {name: file.get_tensor(name) for name in file.keys()}
            for name, value in self.buffers.items():
                value.copy_(tensors[_BUFFER + name])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise _damaged(self.path, error) from error
        return progress, tensors

    def write(self, progress: Progress, tensors: Mapping[str, Shaped[Tensor, "..."]]) -> None:
        """**Raises:** `ArtifactError` and `ResourceError` when it cannot be written."""
        from safetensors.torch import save_file

        content = {**tensors, **{_BUFFER + name: value for name, value in self.buffers.items()}}
        copies = {name: value.detach().cpu().contiguous().clone() for name, value in content.items()}
        with replacing(self.path) as path:
            save_file(copies, path, metadata={"progress": json.dumps(plain(progress))})


def open_checkpoints(folder: Path, asked: Mapping[str, Any]) -> None:
    """Makes the folder of checkpoints, or goes on in one.

    **Arguments:**

    - `asked`: all that the result depends on, in JSON's types: tables of values.

    **Raises:** `ArtifactError` when the checkpoints there are of another tuning, naming what differs.
    """
    path = folder / OPTIONS
    here = json.loads(json.dumps({"schema": SCHEMA, **asked}))
    if not path.is_file():
        write_text(path, json.dumps(here, indent=2) + "\n")
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        differing = [
            f"{name} {now} now, {then} then"
            for part in dict.fromkeys([*there, *here])
            for name, now, then in _differences(part, here.get(part), there.get(part))
        ]
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error
    if differing:
        raise ArtifactError(
            f"{folder.parent} holds another tuning ({'; '.join(differing)})",
            "the same options, model and inputs, to go on with it",
            f"choose another folder, or remove {folder}",
        )


def _differences(part: str, here: Any, there: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(here, dict) and isinstance(there, dict):
        names = dict.fromkeys([*there, *here])
        return [(name, here.get(name), there.get(name)) for name in names if here.get(name) != there.get(name)]
    return [] if here == there else [(part, here, there)]


def _damaged(path: Path, reason: object) -> SinkError:
    return ArtifactError(
        f"{path} is damaged ({reason})",
        "a checkpoint as tuning writes it",
        f"remove {path.parent}, then run the same command again",
    )
