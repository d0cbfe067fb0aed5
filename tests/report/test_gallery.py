"""The gallery's data, decoded as the page decodes it."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from sinkscope.artifact import GalleryItem
from sinkscope.report._gallery import gallery_data


def _rows(item: GalleryItem) -> pd.DataFrame:
    layers, heads, _ = item.mass.shape
    rows = [
        {"input": item.input, "layer": layer, "head": head, "sink": (layer + head) % 3, "mass": 0.5, "event": head == 1}
        for layer in range(layers)
        for head in range(heads)
    ]
    rows[0] |= {"sink": None, "event": False}
    return pd.DataFrame(rows).astype({"sink": "Int32"})


def _array(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype)


def test_masses_survive_to_one_part_in_255_and_small_ones_are_left_out() -> None:
    mass = np.random.default_rng(2).dirichlet(np.full(17, 0.2), size=(3, 5)).astype(np.float32)
    mass[2, 4] = np.nan
    item = GalleryItem("x", "none", mass)
    (found,) = gallery_data([item], _rows(item))
    counts = _array(found["counts"], "<u4")
    keys, masses = _array(found["keys"], "<u2"), _array(found["masses"], "u1") / 255
    assert counts.sum() == len(keys) == len(masses)
    ends = np.cumsum(counts)
    for at, (layer, head) in enumerate(np.ndindex(3, 5)):
        expected = {key: value for key, value in enumerate(mass[layer, head]) if value >= 0.01}
        own = slice(ends[at] - counts[at], ends[at])
        assert keys[own].tolist() == list(expected)
        assert np.allclose(masses[own], list(expected.values()), atol=0.5 / 255 + 1e-6)


def test_sinks_are_those_of_the_event_table() -> None:
    item = GalleryItem("x", "none", np.full((2, 3, 7), 1 / 7, np.float32))
    (found,) = gallery_data([item], _rows(item))
    assert _array(found["sink"], "<i4").tolist() == [-1, 1, 2, 1, 2, 0]
    assert _array(found["event"], "u1").tolist() == [0, 1, 0, 0, 1, 0]
    assert _array(found["sinkMass"], "<f4").tolist() == [0.0, 0.5, 0.5, 0.5, 0.5, 0.5]


def test_long_texts_keep_their_length_and_show_their_beginning() -> None:
    texts = tuple(f"token-{i}" for i in range(523))
    item = GalleryItem("x", "text", np.full((1, 2, 523), 1 / 523, np.float32), tokens=texts)
    (found,) = gallery_data([item], _rows(item))
    assert found["count"] == 523
    assert found["tokens"] == list(texts[:512])


def test_pictures_are_kept_in_shape_and_made_small(tmp_path: Path) -> None:
    Image.new("RGBA", (1036, 518), (200, 20, 20, 255)).save(tmp_path / "picture.png")
    item = GalleryItem("x", "picture", np.zeros((1, 2, 3), np.float32), picture=tmp_path / "picture.png")
    (found,) = gallery_data([item], _rows(item))
    head, _, content = found["picture"].partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        assert picture.size == (448, 224)
        red, green, blue = np.asarray(picture)[100, 100]
        assert red > 180 and green < 40 and blue < 40
