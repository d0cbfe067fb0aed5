"""Pictures from files, tables and memory, prepared one by one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sinkscope._errors import InputError
from sinkscope.models._pictures import picture_files, read_picture, to_rgb
from sinkscope.models._types import Batch, PictureTransform
from sinkscope.models._vision_tokens import VisionTokens


class PictureSource(Protocol):
    """Where pictures come from."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str: ...

    def open(self, index: int) -> Image.Image:
        """The picture as RGB. Raises `InputError` if it cannot be read."""
        ...

    def identity(self, count: int) -> dict[str, Any]: ...


@dataclass(frozen=True)
class PictureFiles:
    """Picture files; names are paths relative to `folder`, or as given without one."""

    paths: Sequence[Path]
    folder: Path | None = None
    ignored: int = 0

    @classmethod
    def of(cls, folder: Path) -> PictureFiles:
        """All pictures of a folder and its subfolders. Raises `InputError` if there is none."""
        paths, ignored = picture_files(folder)
        if not paths:
            raise InputError(
                f"no pictures in {folder} ({ignored} other files)",
                "files such as .jpg or .png, also in subfolders",
                "give another folder",
            )
        return cls(paths, folder, ignored)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        path = self.paths[index]
        return str(path) if self.folder is None else path.relative_to(self.folder).as_posix()

    def open(self, index: int) -> Image.Image:
        return read_picture(self.paths[index], str(self.paths[index]))

    def identity(self, count: int) -> dict[str, Any]:
        digest = hashlib.sha256()
        for index in range(count):
            digest.update(self.name(index).encode() + b"\0")
            with self.paths[index].open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        location = self.folder or (self.paths[0] if len(self.paths) == 1 else None)
        return {
            "kind": "images",
            "location": None if location is None else str(location.resolve()),
            "sha256": digest.hexdigest(),
            "ignored_files": self.ignored,
        }


@dataclass(frozen=True)
class PicturesInMemory:
    """PIL pictures; names are running numbers from `first`."""

    pictures: Sequence[Image.Image]
    first: int = 0

    def __len__(self) -> int:
        return len(self.pictures)

    def name(self, index: int) -> str:
        return str(self.first + index)

    def open(self, index: int) -> Image.Image:
        return to_rgb(self.pictures[index], f"picture {self.name(index)}")

    def identity(self, count: int) -> dict[str, Any]:
        digest = hashlib.sha256()
        for picture in self.pictures[:count]:
            digest.update(f"{picture.mode} {picture.size}".encode())
            digest.update(picture.tobytes())
        return {"kind": "images", "location": None, "sha256": digest.hexdigest()}


@dataclass(frozen=True)
class PictureItems:
    """Pictures of a source as the model takes them."""

    source: PictureSource
    transform: PictureTransform
    tokens: VisionTokens | None
    size: int | None

    def __len__(self) -> int:
        return len(self.source)

    def name(self, index: int) -> str:
        return self.source.name(index)

    def read(self, index: int) -> tuple[Float[Tensor, "channels height width"], Image.Image | None]:
        picture = self.source.open(index)
        if self.tokens is not None:
            rows, cols = self.tokens.patch
            if picture.height < rows or picture.width < cols:
                raise InputError(
                    f"{self.name(index)}, a picture of {picture.width} x {picture.height} pixels",
                    f"at least one patch of {cols} x {rows} pixels",
                    "replace it, or leave it out with --skip-bad",
                )
        values, seen = self.transform(picture)
        if self.tokens is not None:
            self.tokens.check(*values.shape[-2:])
        return values, seen

    def identity(self, count: int) -> dict[str, Any]:
        return {**self.source.identity(count), "size": self.size}


def picture_batch(
    index: int,
    names: tuple[str, ...],
    items: Sequence[tuple[Float[Tensor, "channels height width"], Image.Image | None]],
) -> Batch:
    """Stacks prepared pictures; roles and arguments are added by the caller, who knows the model."""
    values = [value for value, _ in items]
    shapes = {tuple(value.shape) for value in values}
    if len(shapes) > 1:
        raise InputError(
            f"pictures that come out in different sizes ({', '.join(map(str, sorted(shapes)))}) in one batch",
            "one size, since this model's preprocessing keeps the aspect ratio",
            "--batch-size 1",
        )
    return Batch(index, names, (torch.stack(values),), pictures=tuple(seen for _, seen in items))
