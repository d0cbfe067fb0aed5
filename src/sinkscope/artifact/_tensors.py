"""Arrays in safetensors files: written whole and in one step, read one at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .._errors import ArtifactError
from ._files import replacing
from ._manifest import damaged

_CODES = {"float64": "F64", "int64": "I64", "float32": "F32", "int32": "I32"}


@dataclass(frozen=True)
class Stream:
    """An array too large to hold: its dtype, its shape, and its values in pieces along the first axis."""

    dtype: str
    shape: tuple[int, ...]
    pieces: Iterable[np.ndarray]

    @property
    def n_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


class Tensors(Mapping[str, np.ndarray]):
    """The arrays of one safetensors file; each is read from disk when it is asked for, and not kept.

    **Raises:** `ArtifactError` when the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as file:
            self._names = tuple(file.keys())
            self.metadata: Mapping[str, str] = file.metadata() or {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        with self._open() as file:
            array: np.ndarray = file.get_tensor(name)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _open(self) -> Any:
        if not self.path.is_file():
            raise ArtifactError(
                f"there is no {self.path}",
                "every file of a finished run",
                "run the command of manifest.json again: it writes what is missing",
            )
        try:
            return safe_open(self.path, framework="numpy")
        except (OSError, SafetensorError) as error:
            raise damaged(self.path, str(error)) from error


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Replace `path` by these arrays in one step. **Raises:** as `replacing`."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(contiguous, dict(metadata) if metadata else None))


def write_streams(path: Path, streams: Mapping[str, Stream]) -> None:
    """Replace `path` by these arrays in one step, holding one piece at a time.

    The library's own writer wants every array in memory; the format is a length, a JSON header and the bytes.
    Arrays with the widest numbers come first, which keeps every array aligned.

    **Raises:** as `replacing`.
    """
    ordered = sorted(streams.items(), key=lambda item: -np.dtype(item[1].dtype).itemsize)
    header, end = {}, 0
    for name, stream in ordered:
        begin, end = end, end + stream.n_bytes
        header[name] = {"dtype": _CODES[stream.dtype], "shape": stream.shape, "data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, stream in ordered:
            for piece in stream.pieces:
                file.write(np.ascontiguousarray(piece, dtype=np.dtype(stream.dtype).newbyteorder("<")).data)
