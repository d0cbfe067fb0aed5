"""The gallery's pictures, texts and received masses, small enough to live in the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from sinkscope.artifact import GalleryItem

LEAST_MASS = 0.01
"""Keys that receive less are not shaded, so a head costs the page a few bytes per input, never one per token."""
MOST_TOKENS = 512
"""Longer texts are shown up to here; the page says so."""
_PICTURE_SIDE = 448


def gallery_data(items: list[GalleryItem], rows: pd.DataFrame) -> list[dict[str, Any]]:
    """What the page's script draws the gallery from.

    `rows` holds `input, layer, head, sink, mass, event` of these inputs. Masses are rounded to 1/255; arrays are
    little-endian and base64: per (layer, head) the sink (-1: none), its mass, whether it is an event, and how many
    (key, mass) pairs follow.
    """
    return [_item(item, rows[rows["input"] == item.input]) for item in items]


def _item(item: GalleryItem, rows: pd.DataFrame) -> dict[str, Any]:
    layers, heads, tokens = item.mass.shape
    sink = np.full((layers, heads), -1, np.int32)
    mass = np.zeros((layers, heads), np.float32)
    event = np.zeros((layers, heads), np.uint8)
    placed = rows[rows["sink"].notna()]
    at = (placed["layer"].to_numpy(int), placed["head"].to_numpy(int))
    sink[at] = placed["sink"].to_numpy(np.int32)
    mass[at] = placed["mass"].to_numpy(np.float32)
    event[at] = placed["event"].to_numpy()
    received = np.nan_to_num(item.mass.astype(np.float32))
    kept = received >= LEAST_MASS
    return {
        "name": item.input,
        "kind": item.kind,
        "picture": None if item.picture is None else _data_uri(item.picture),
        "rows": item.rows,
        "cols": item.cols,
        "count": tokens,
        "tokens": None if item.tokens is None else list(item.tokens[:MOST_TOKENS]),
        "roles": None if item.roles is None else list(item.roles),
        "prefix": item.prefix,
        "heads": heads,
        "sink": _pack(sink),
        "sinkMass": _pack(mass),
        "event": _pack(event),
        "counts": _pack(kept.sum(axis=2).astype(np.uint32)),
        "keys": _pack(np.nonzero(kept)[2].astype(np.uint32 if tokens > 2**16 else np.uint16)),
        "masses": _pack(np.rint(255 * received[kept].clip(max=1.0)).astype(np.uint8)),
    }


def _pack(values: np.ndarray) -> str:
    return base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()


def _data_uri(path: Path) -> str:
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
