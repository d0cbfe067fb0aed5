"""Picture files: which there are, and their pixels as upright RGB."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from sinkscope._errors import InputError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"}
)
"""Endings of the files that a folder of pictures is taken to consist of; others are ignored and counted."""

# Filters of `warnings` belong to the whole process, so that only one thread at a time may change them.
_opening = threading.Lock()


def picture_files(folder: Path) -> tuple[list[Path], int]:
    """Pictures of a folder and its subfolders in the order of their relative paths, and the count of other files."""
    files = sorted(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.relative_to(folder).as_posix()
    )
    pictures = [path for path in files if path.suffix.lower() in SUFFIXES]
    return pictures, len(files) - len(pictures)


def read_picture(source: Path | bytes, name: str) -> Image.Image:
    """Reads a picture file, or the bytes of one, as upright RGB (see `to_rgb`).

    Raises `InputError`, naming the picture, for what is corrupt, cut off, no picture, or a decompression bomb.
    """
    try:
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        with picture:
            return to_rgb(picture, name)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(
            f"{name}, a picture too large to be read safely ({str(error).split(' could')[0].split(',')[0]})",
            f"at most {Image.MAX_IMAGE_PIXELS} pixels",
            "make it smaller, or leave it out with --skip-bad",
        ) from None
    except (InputError, MemoryError):
        raise
    except Exception as error:
        # A broken file can fail anywhere in the decoder of its format.
        raise InputError(
            f"{name}, which cannot be read as a picture ({str(error) or type(error).__name__})",
            "a whole picture file",
            "replace it, or leave it out with --skip-bad",
        ) from None


def to_rgb(picture: Image.Image, name: str) -> Image.Image:
    """Upright RGB with 8 bits: turned as EXIF says, transparency laid on white, 16 bits scaled to 8.

    Raises `InputError` for pictures of floating point numbers, whose range the file does not tell.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "F":
        raise InputError(
            f"{name}, a picture of floating point numbers",
            "whole numbers of 8 or 16 bits",
            "save it as PNG or JPEG, or pass tensors",
        )
    if picture.mode.startswith("I"):
        levels = np.asarray(picture).astype(np.int64)
        picture = Image.fromarray(np.clip(levels >> 8, 0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def picture_of(
    values: Float[Tensor, "channels height width"],
    mean: float | Sequence[float],
    std: float | Sequence[float],
    scale: float = 1 / 255,
) -> Image.Image | None:
    """The picture behind normalised values, (levels * `scale` - mean) / std; None if it is not RGB."""
    if len(values) != 3:
        return None
    means, stds = (torch.tensor(np.broadcast_to(np.asarray(x, np.float32), 3)[:, None, None]) for x in (mean, std))
    levels = ((values.float() * stds + means) / scale).round().clamp(0, 255)
    return Image.fromarray(levels.to(torch.uint8).permute(1, 2, 0).numpy())
