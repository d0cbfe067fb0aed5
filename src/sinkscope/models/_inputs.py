"""Any supported form of input, to batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from PIL import Image
from torch import Tensor

from sinkscope._errors import InputError, OptionError
from sinkscope.models._datasets import Column, DatasetPictures, HubColumn, ParquetColumn
from sinkscope.models._feed import Feed, rows_of
from sinkscope.models._items import Assemble, ItemInputs, Items
from sinkscope.models._model import Model
from sinkscope.models._picture_items import PictureFiles, PictureItems, PicturesInMemory, PictureSource
from sinkscope.models._pictures import SUFFIXES, picture_files
from sinkscope.models._stream import StreamInputs, TensorRows, stacked
from sinkscope.models._text_items import Strings, read_text, text_origin, windows
from sinkscope.models._types import Inputs

Kind: TypeAlias = Literal["images", "text", "dataset"]


@dataclass(frozen=True)
class _Options:
    batch_size: int
    limit: int | None
    size: int | None
    length: int | None
    num_workers: int
    skip_bad: bool

    def __post_init__(self) -> None:
        for name, value, least in (
            ("batch_size", self.batch_size, 1),
            ("limit", self.limit, 1),
            ("size", self.size, 1),
            ("length", self.length, 1),
            ("num_workers", self.num_workers, 0),
        ):
            if value is not None and value < least:
                raise OptionError(f"{name}={value}", f"a whole number of at least {least}", f"{name}={max(1, least)}")


def make_inputs(
    model: Model,
    inputs: Any,
    *,
    batch_size: int = 8,
    limit: int | None = None,
    size: int | None = None,
    length: int | None = None,
    seed: int = 0,
    num_workers: int = 0,
    skip_bad: bool = False,
    kind: Kind | None = None,
) -> Inputs:
    """Prepares inputs for `model` as its own configuration says, in batches that are the same in every run.

    **Arguments:**

    - `inputs`: one of
        - a folder of pictures (searched with its subfolders, in the order of the relative paths) or a picture file;
        - a text file, tokenised whole and cut into windows of `length` tokens;
        - a parquet file, a folder of them, or `NAME[:SPLIT]` of a dataset of the hub, with a column of pictures, or of
          texts that are read one after the other and cut into windows;
        - PIL pictures, paths of pictures, or strings (each whole string one input, padded within its batch);
        - a tensor that is model input already (inputs first), a dict of model arguments (one batch), or an iterable
          of batches of tensors, dicts, pictures or strings, also as (input, label).
    - `batch_size`: inputs per batch; batch k holds inputs k*B to (k+1)*B - 1. Dicts and iterables keep their own.
    - `limit`: only the first so many inputs.
    - `size`: height and width of pictures in pixels, instead of the model's own.
    - `length`: tokens of a window with the special tokens that the tokenizer adds by itself; by default the model's
      maximum, at most 128. For strings: the most tokens allowed.
    - `seed`: for random choices; none is made by default.
    - `num_workers`: threads that read and decode ahead.
    - `skip_bad`: leave bad inputs out and list them in `Batch.bad`, instead of raising.
    - `kind`: what a path or name means, where that is not to be guessed.

    Nothing is cut or dropped silently: an incomplete last window is counted in `Inputs.identity`, a string that is
    too long is an error. Pictures are turned as EXIF says, and laid on white where they are transparent.

    **Raises:** `InputError` and `OptionError`, when inputs are made or when the bad input is read.
    """
    options = _Options(batch_size, limit, size, length, num_workers, skip_bad)
    foreign = {"text": ("size", size), "vision": ("length", length), "unknown": ("size", size)}
    name, value = foreign[model.modality]
    if value is not None:
        raise OptionError(
            f"{name} for {model.reference}, which takes {model.modality}", "no such option", f"leave {name} out"
        )
    feed = Feed(model, size)
    if isinstance(inputs, str | Path):
        return _from_path(feed, str(inputs), kind, options)
    if isinstance(inputs, Image.Image):
        inputs = [inputs]
    if isinstance(inputs, list | tuple) and inputs and kind != "dataset":
        if all(isinstance(item, Image.Image) for item in inputs):
            return _pictures(feed, PicturesInMemory(inputs), options)
        if all(isinstance(item, Path) for item in inputs):
            return _pictures(feed, PictureFiles([_existing(path) for path in inputs]), options)
        if all(isinstance(item, str) for item in inputs):
            if model.modality == "vision":
                return _pictures(feed, PictureFiles([_existing(Path(item)) for item in inputs]), options)
            return _items(Strings(inputs, feed.codec, length), feed.texts, options)
    if size is not None:
        raise OptionError("size with inputs that are preprocessed already", "pictures to resize", "leave size out")
    if isinstance(inputs, Tensor):
        rows_of(inputs)
        return _items(TensorRows(inputs), stacked(feed), options)
    if isinstance(inputs, Mapping):
        rows_of(inputs)
        inputs = [inputs]
    empty = isinstance(inputs, Sequence) and not inputs
    if empty or not isinstance(inputs, Iterable):
        raise InputError(
            f"inputs of type {type(inputs).__name__}{' without elements' if empty else ''}",
            "a path, pictures, strings, a tensor, a dict of model arguments, or an iterable of batches",
            "help(sinkscope.models.make_inputs)",
        )
    return StreamInputs(inputs, feed, limit=limit, length=length, skip_bad=skip_bad)


def _from_path(feed: Feed, given: str, kind: Kind | None, options: _Options) -> Inputs:
    path = Path(given).expanduser()
    parquet = [path] if path.suffix == ".parquet" else sorted(path.glob("*.parquet")) if path.is_dir() else []
    if kind == "dataset" and not path.exists() and path.suffix != ".parquet":
        return _dataset(feed, HubColumn(given, feed.model.modality), path, options)
    _existing(path)
    pictures, _ = picture_files(path) if path.is_dir() else ([], 0)
    if parquet and (kind == "dataset" or (kind is None and not pictures)):
        return _dataset(feed, ParquetColumn(parquet, feed.model.modality), path, options)
    if kind == "dataset":
        raise InputError(
            f"no parquet file in {given}", "a .parquet file or a folder of them", "give --images or --text"
        )
    if path.is_dir():
        if kind == "text":
            raise InputError(f"the folder {given} as text", "one text file", f"cat {given}/*.txt > all.txt")
        return _pictures(feed, PictureFiles.of(path), options)
    if kind == "images" or (kind is None and path.suffix.lower() in SUFFIXES):
        return _pictures(feed, PictureFiles([path]), options)
    text = windows([read_text(path)], feed.codec, options.length, options.limit, text_origin(path))
    return _items(text, feed.texts, options)


def _dataset(feed: Feed, column: Column, path: Path, options: _Options) -> Inputs:
    if feed.model.modality == "vision":
        folder = path if path.is_dir() else path.parent
        return _pictures(feed, DatasetPictures(column, folder), options)
    texts = (str(column.value(index) or "") for index in range(len(column)))
    text = windows(texts, feed.codec, options.length, options.limit, column.origin())
    return _items(text, feed.texts, options)


def _pictures(feed: Feed, source: PictureSource, options: _Options) -> Inputs:
    return _items(PictureItems(source, feed.transform, feed.tokens, feed.size), feed.pictures, options)


def _items(items: Items, assemble: Assemble, options: _Options) -> Inputs:
    return ItemInputs(items, assemble, options.batch_size, options.limit, options.num_workers, options.skip_bad)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise InputError(
            f"no file or folder {path}",
            "an existing path",
            "check the spelling; give a dataset of the hub with --dataset, and text itself as a list of strings",
        )
    return path
