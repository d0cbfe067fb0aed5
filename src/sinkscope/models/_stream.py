"""Tensors, dicts of model arguments, and iterables of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from PIL import Image
from torch import Tensor

from sinkscope._errors import InputError
from sinkscope.models._feed import Feed, rows_of
from sinkscope.models._hash import tensors_sha256
from sinkscope.models._items import Assemble, Items, collect, read_or_error
from sinkscope.models._picture_items import PictureItems, PicturesInMemory
from sinkscope.models._text_items import Strings
from sinkscope.models._types import Batch


@dataclass(frozen=True)
class TensorRows:
    """The rows of a tensor that is model input already; names are running numbers."""

    values: Shaped[Tensor, "inputs ..."]

    def __len__(self) -> int:
        return len(self.values)

    def name(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> Shaped[Tensor, "..."]:
        return self.values[index]

    def identity(self, count: int) -> dict[str, Any]:
        return {"kind": "tensors", "location": None, "sha256": tensors_sha256({"": self.values[:count]})}


class StreamInputs:
    """`Inputs` whose batches are the elements of an iterable; names are running numbers of the rows.

    An element is a tensor, a dict of model arguments, a picture, a string, a list of pictures or of strings, or a
    tuple or list that begins with one of these (input, label). An iterable that can be read only once gives its
    batches once. Resumed and distributed runs need an iterable that gives the same order every time.
    """

    def __init__(
        self, elements: Iterable[Any], feed: Feed, *, limit: int | None, length: int | None, skip_bad: bool
    ) -> None:
        self._elements = elements
        self._feed = feed
        self._limit = limit
        self._length = length
        self._skip_bad = skip_bad
        self._spent = False

    @property
    def identity(self) -> Mapping[str, Any]:
        """Of a dict its hash; of other iterables nothing can be known before they are read."""
        if isinstance(self._elements, list) and len(self._elements) == 1 and isinstance(self._elements[0], Mapping):
            tensors = {name: value for name, value in self._elements[0].items() if isinstance(value, Tensor)}
            count = rows_of(self._elements[0]) if self._limit is None else min(self._limit, rows_of(self._elements[0]))
            return {"kind": "tensors", "location": None, "count": count, "sha256": tensors_sha256(tensors)}
        return {"kind": "iterable", "location": type(self._elements).__name__, "count": None, "sha256": None}

    @property
    def n_batches(self) -> int | None:
        return len(self._elements) if isinstance(self._elements, Sized) and self._limit is None else None

    def batches(self, *, skip: frozenset[int] = frozenset(), rank: int = 0, world: int = 1) -> Iterator[Batch]:
        iterator = iter(self._elements)
        if self._spent:
            raise InputError(
                f"a {type(self._elements).__name__} that has been read to its end",
                "an iterable that can be read again, such as a list or a DataLoader",
                "make it anew",
            )
        self._spent = iterator is self._elements
        seen = 0
        for number, element in enumerate(iterator):
            value = _input_of(element)
            rows = rows_of(value) if isinstance(value, Tensor | Mapping) else len(value)
            if self._limit is not None and seen + rows > self._limit:
                value, rows = _first(value, self._limit - seen), self._limit - seen
            if number % world == rank and number not in skip:
                yield self._batch(number, value, tuple(str(seen + row) for row in range(rows)))
            seen += rows
            if seen == self._limit:
                return

    def _batch(self, number: int, value: Any, names: tuple[str, ...]) -> Batch:
        if isinstance(value, Tensor):
            return self._feed.finished(Batch(number, names, (value,)))
        if isinstance(value, Mapping):
            return self._feed.finished(Batch(number, names, kwargs=dict(value)))
        items: Items
        assemble: Assemble
        first = int(names[0])
        if isinstance(value[0], str):
            items, assemble = Strings(value, self._feed.codec, self._length, first), self._feed.texts
        else:
            source = PicturesInMemory(value, first)
            items = PictureItems(source, self._feed.transform, self._feed.tokens, self._feed.size)
            assemble = self._feed.pictures
        results = [read_or_error(items, index) for index in range(len(items))]
        return collect(number, names, results, assemble, self._skip_bad)


def stacked(feed: Feed) -> Assemble:
    """Assembles rows of a tensor."""
    return lambda number, names, rows: feed.finished(Batch(number, names, (torch.stack(rows),)))


def _input_of(element: Any) -> Tensor | Mapping[str, Any] | Sequence[Any]:
    if isinstance(element, Tensor | Mapping):
        return element
    if isinstance(element, Image.Image | str):
        return [element]
    if isinstance(element, list | tuple) and len(element):
        if all(isinstance(item, Image.Image) for item in element) or all(isinstance(item, str) for item in element):
            return element
        return _input_of(element[0])
    raise InputError(
        f"a batch of type {type(element).__name__}",
        "a tensor, a dict of model arguments, PIL pictures, strings, or a tuple that begins with one of these",
        "convert the elements of the iterable",
    )


def _first(value: Any, count: int) -> Any:
    if isinstance(value, Mapping):
        rows = rows_of(value)
        cut = {
            name: item[:count] for name, item in value.items() if isinstance(item, Tensor) and item.shape[:1] == (rows,)
        }
        return {**value, **cut}
    return value[:count]
