"""Reading pictures: modes, orientation, and files that are broken or dangerous."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sinkscope._errors import InputError
from sinkscope.models._pictures import picture_files, picture_of, read_picture
from tests.models._tiny import picture


def colours(path: Path) -> list[Any]:
    """The four pixels of a 2 x 2 picture as they are read."""
    image = read_picture(path, path.name)
    assert image.mode == "RGB"
    return [image.getpixel((x, y)) for y in range(2) for x in range(2)]


def test_grey_and_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 17], [128, 255]], np.uint8)).save(tmp_path / "a.png")
    assert colours(tmp_path / "a.png") == [(v, v, v) for v in (0, 17, 128, 255)]
    Image.fromarray(np.array([[0, 1], [1, 0]], bool)).save(tmp_path / "b.png")
    assert colours(tmp_path / "b.png") == [(v, v, v) for v in (0, 255, 255, 0)]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    levels = np.array([[0, 257 * 17], [257 * 128, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(levels).save(tmp_path / name)
        assert colours(tmp_path / name) == [(v, v, v) for v in (0, 17, 128, 255)]


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]], [[0, 0, 0, 51], [255, 0, 0, 255]]], np.uint8)
    expected = [(10, 20, 30), (255, 255, 255), (204, 204, 204), (255, 0, 0)]
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert colours(tmp_path / "a.png") == expected
    grey = np.array([[[10, 255], [10, 0]], [[0, 51], [255, 255]]], np.uint8)
    Image.fromarray(grey, "LA").save(tmp_path / "b.png")
    assert colours(tmp_path / "b.png") == [(v, v, v) for v in (10, 255, 204, 255)]


def test_palettes_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (2, 2))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1, 1, 0])
    image.save(tmp_path / "a.png")
    assert colours(tmp_path / "a.png") == [(10, 20, 30), (200, 100, 50), (200, 100, 50), (10, 20, 30)]
    image.save(tmp_path / "b.png", transparency=b"\xff\x00")
    assert colours(tmp_path / "b.png") == [(10, 20, 30), (255, 255, 255), (255, 255, 255), (10, 20, 30)]


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = read_picture(tmp_path / "a.jpg", "a").getpixel((7, 7))  # type: ignore[misc]
    assert red > 220 and green < 60 and blue < 60


def test_pictures_are_turned_as_exif_says(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg", "a").size == (10, 20)


def test_floating_point_pictures_have_no_known_range(tmp_path: Path) -> None:
    Image.fromarray(np.ones((5, 7), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"a.tif, a picture of floating point numbers"):
        read_picture(tmp_path / "a.tif", "a.tif")


def broken(path: Path) -> None:
    picture(61, 83).save(path)
    path.write_bytes(path.read_bytes()[:-200])


def text(path: Path) -> None:
    path.write_text("no picture")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("make", [broken, text, empty])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_broken_files_are_named(make: Any, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"bad{suffix}"
    make(path)
    with pytest.raises(InputError) as caught:
        read_picture(path, path.name)
    assert caught.value.found.startswith(f"bad{suffix}, which cannot be read as a picture (")
    assert "--skip-bad" in caught.value.next_step


def bomb(path: Path, side: int) -> None:
    """A PNG of a few bytes that claims `side` x `side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_000, 50_000])
def test_a_decompression_bomb_is_not_opened(side: int, tmp_path: Path) -> None:
    bomb(tmp_path / "bomb.png", side)
    with pytest.raises(InputError) as caught:
        read_picture(tmp_path / "bomb.png", "bomb.png")
    assert caught.value.found.startswith("bomb.png, a picture too large to be read safely (Image size (")
    assert caught.value.expected == f"at most {Image.MAX_IMAGE_PIXELS} pixels"


def test_files_of_a_folder_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/z.PNG", "a.jpg", "notes.txt", "a/.DS_Store", "c/d/e.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, others = picture_files(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.jpg", "a/z.PNG", "b.jpg", "c/d/e.webp"]
    assert others == 2


def test_the_picture_behind_normalised_values() -> None:
    import torch

    image = picture(5, 7)
    levels = torch.tensor(np.array(image)).permute(2, 0, 1)
    mean, std = [0.1, 0.2, 0.3], [0.5, 1.0, 2.0]
    values = (levels / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert picture_of(values, mean, std) == image
    assert picture_of(levels.float(), 0.0, 1.0, scale=1.0) == image
    assert picture_of(levels[:1].float(), 0.0, 1.0) is None
