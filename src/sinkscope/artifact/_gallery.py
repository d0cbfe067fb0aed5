"""The gallery: the first inputs as people see them, with the attention that each of their tokens receives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float

from ._files import replacing, write_text
from ._manifest import damaged, dumps
from ._tensors import Tensors, write_tensors

if TYPE_CHECKING:
    from PIL.Image import Image

GALLERY_SIZE = 6
"""How many inputs the gallery shows."""


_FACTS = ("input", "kind", "rows", "cols", "prefix", "tokens", "roles")


@dataclass(frozen=True)
class GalleryItem:
    """One input of the gallery.

    - `input`: its name, as in the event table.
    - `kind`: what there is to see.
    - `picture`: the picture file, None when there is none.
    - `rows`, `cols`: size of the patch grid, None where there is none.
    - `prefix`: tokens before the first patch.
    - `tokens`: surface form of every token, None for pictures.
    - `roles`: role of every token, None when the token order is not known.
    - `mass`: mean attention received, per layer, head and token.
    """

    input: str
    kind: Literal["picture", "text", "none"]
    mass: Float[np.ndarray, "layers heads tokens"]
    picture: Path | None = None
    rows: int | None = None
    cols: int | None = None
    prefix: int = 0
    tokens: tuple[str, ...] | None = None
    roles: tuple[str, ...] | None = None


def write_item(folder: Path, number: int, item: GalleryItem, picture: Image | None) -> None:
    """Keep one item under its number, until `gather` makes the gallery. **Raises:** as `replacing`."""
    name = None
    if picture is not None:
        name = f"picture-{number:03d}.png"
        with replacing(folder / name) as temporary:
            picture.save(temporary, format="PNG")
    facts = {fact: getattr(item, fact) for fact in _FACTS} | {"picture": name}
    path = folder / f"item-{number:03d}.safetensors"
    write_tensors(path, {"mass": item.mass.astype(np.float16)}, {"item": dumps(facts)})


def gather(folder: Path) -> None:
    """Make `gallery.json` and `mass.safetensors` of the items kept, in order of their numbers."""
    items = [Tensors(path) for path in sorted(folder.glob("item-*.safetensors"))[:GALLERY_SIZE]]
    write_tensors(folder / "mass.safetensors", {str(place): item["mass"] for place, item in enumerate(items)})
    write_text(folder / "gallery.json", dumps([json.loads(item.metadata["item"]) for item in items]))


def read_gallery(folder: Path) -> list[GalleryItem]:
    """The gallery in `folder`; empty when the run made none. **Raises:** `ArtifactError` when a file is damaged."""
    path = folder / "gallery.json"
    if not path.is_file():
        return []
    masses = Tensors(folder / "mass.safetensors")
    try:
        return [
            GalleryItem(
                input=facts["input"],
                kind=facts["kind"],
                mass=masses[str(place)].astype(np.float32),
                picture=folder / facts["picture"] if facts["picture"] else None,
                rows=facts["rows"],
                cols=facts["cols"],
                prefix=facts["prefix"],
                tokens=_texts(facts["tokens"]),
                roles=_texts(facts["roles"]),
            )
            for place, facts in enumerate(json.loads(path.read_text(encoding="utf-8")))
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error


def _texts(values: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)
