"""Inputs in a random order: some to train on, some held out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sinkscope._errors import InputError
from sinkscope.models import Batch, Inputs
from sinkscope.models._items import ItemInputs, Items, read_or_error

MOST_HELD_OUT = 256
CACHED_BYTES = 2**28
"""Prepared inputs are kept in memory up to this size, others are prepared each time."""

_HELD_OUT, _ORDER = 0, 1


@dataclass(frozen=True)
class Drawn:
    """A batch, and which of all inputs its rows are."""

    batch: Batch
    rows: tuple[int, ...]


class Source(Protocol):
    """Units that can be drawn in any order: inputs, or batches where inputs come in batches of their own."""

    def __len__(self) -> int: ...

    def rows(self, units: Sequence[int]) -> int:
        """How many inputs these units are."""
        ...

    def batches(self, order: Sequence[int], size: int, skip: int = 0) -> Iterator[Drawn]:
        """Batches of `size` units in this order, the first `skip` batches left out."""
        ...


@dataclass(frozen=True)
class Supply:
    """What is trained on and what is held out.

    - `source`: of both.
    - `training`, `held_out`: units.
    - `left_out`: inputs that cannot be read, name to reason.
    """

    source: Source
    training: tuple[int, ...]
    held_out: tuple[int, ...]
    left_out: dict[str, str]
    seed: int
    batch_size: int

    @property
    def count(self) -> int:
        """Inputs to train on."""
        return self.source.rows(self.training)

    @property
    def held_out_count(self) -> int:
        """Inputs held out."""
        return self.source.rows(self.held_out)

    def train(self, steps: int, done: int) -> Iterator[Drawn]:
        """Batches of the steps that are not done: epoch after epoch, each in an order of its own, without a break."""
        size = self.batch_size if isinstance(self.source, ItemSource) else 1
        order: list[int] = []
        for epoch in range(-(-steps * size // len(self.training))):
            generator = np.random.default_rng([self.seed, _ORDER, epoch])
            order += [self.training[place] for place in generator.permutation(len(self.training))]
        return self.source.batches(order[: steps * size], size, done)

    def evaluate(self) -> Iterator[Drawn]:
        """The held-out inputs."""
        return self.source.batches(self.held_out, self.batch_size if isinstance(self.source, ItemSource) else 1)


def make_supply(inputs: Inputs, batch_size: int, share: float, seed: int) -> Supply:
    """Divides inputs.

    **Raises:** `InputError` when there are too few to hold one out.
    """
    source: Source
    left_out: dict[str, str] = {}
    if isinstance(inputs, ItemInputs):
        source = ItemSource(inputs)
        units = list(range(len(source)))
        if inputs.skip_bad:
            left_out = {inputs.items.name(unit): reason for unit, reason in source.bad().items()}
            units = [unit for unit in units if unit not in source.bad()]
    else:
        source = BatchSource([batch for batch in inputs.batches() if batch.names])
        units = list(range(len(source)))
    if len(units) < 2:
        kind = "inputs" if isinstance(source, ItemSource) else "batches"
        raise InputError(
            f"{len(units)} {kind} to tune on",
            "two or more, since one of them at least is held out",
            f"give more {kind}" if kind == "inputs" else "give smaller batches, or inputs one by one",
        )
    count = min(max(1, round(share * len(units))), MOST_HELD_OUT, len(units) - 1)
    chosen = np.random.default_rng([seed, _HELD_OUT]).permutation(len(units))[:count]
    held_out = tuple(units[place] for place in sorted(chosen))
    training = tuple(unit for unit in units if unit not in set(held_out))
    return Supply(source, training, held_out, left_out, seed, batch_size)


class ItemSource:
    """Inputs that can be read one by one."""

    def __init__(self, inputs: ItemInputs) -> None:
        self._inputs = inputs
        self._items = _Kept(inputs.items)
        self._bad: dict[int, str] | None = None

    def __len__(self) -> int:
        return self._inputs.count

    def rows(self, units: Sequence[int]) -> int:
        return len(units)

    def bad(self) -> dict[int, str]:
        """Inputs that cannot be read, with the reason."""
        if self._bad is None:
            read = ((unit, read_or_error(self._items, unit)) for unit in range(len(self)))
            self._bad = {unit: result.found for unit, result in read if isinstance(result, InputError)}
        return self._bad

    def batches(self, order: Sequence[int], size: int, skip: int = 0) -> Iterator[Drawn]:
        items = _Ordered(self._items, order)
        inputs = replace(self._inputs, items=items, batch_size=size, limit=None, skip_bad=False)
        for batch in inputs.batches(skip=frozenset(range(skip))):
            start = batch.index * size
            yield Drawn(batch, tuple(order[start : start + len(batch.names)]))


@dataclass(frozen=True)
class BatchSource:
    """Batches that are held in memory, as they came."""

    held: Sequence[Batch]

    def __len__(self) -> int:
        return len(self.held)

    def rows(self, units: Sequence[int]) -> int:
        return sum(len(self.held[unit].names) for unit in units)

    def batches(self, order: Sequence[int], size: int, skip: int = 0) -> Iterator[Drawn]:
        first = np.cumsum([0, *(len(batch.names) for batch in self.held)]).tolist()
        for unit in order[skip:]:
            yield Drawn(self.held[unit], tuple(range(first[unit], first[unit + 1])))


@dataclass
class _Kept:
    """Items that are prepared once, as many as there is room for."""

    items: Items
    kept: dict[int, Any] = field(default_factory=dict)
    bytes: int = 0

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return self.items.name(index)

    def read(self, index: int) -> Any:
        if index in self.kept:
            return self.kept[index]
        item = self.items.read(index)
        size = sum(_bytes(leaf) for leaf in tree_leaves(item))
        if self.bytes + size <= CACHED_BYTES:
            self.bytes += size
            self.kept[index] = item
        return item

    def identity(self, count: int) -> dict[str, Any]:
        return self.items.identity(count)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Image.Image):
        return value.width * value.height * len(value.getbands())
    return sys.getsizeof(value)


@dataclass(frozen=True)
class _Ordered:
    """Items in another order, some of them perhaps more than once."""

    items: Items
    order: Sequence[int]

    def __len__(self) -> int:
        return len(self.order)

    def name(self, index: int) -> str:
        return self.items.name(self.order[index])

    def read(self, index: int) -> Any:
        return self.items.read(self.order[index])

    def identity(self, count: int) -> dict[str, Any]:
        return self.items.identity(count)
