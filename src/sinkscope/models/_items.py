"""Inputs that can be counted and read one by one: batch k always holds items k*B to (k+1)*B - 1."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, TypeAlias

from sinkscope._errors import InputError
from sinkscope.models._types import Batch

_AHEAD = 2
"""Batches that worker threads prepare before they are asked for."""


Assemble: TypeAlias = Callable[[int, tuple[str, ...], list[Any]], Batch]
"""Number, names and prepared inputs of a batch to the batch."""


class Items(Protocol):
    """A sequence of inputs that are prepared when they are read."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The `input` column; may be asked for after `read` only."""
        ...

    def read(self, index: int) -> Any:
        """One prepared input. Raises `InputError` if it is bad."""
        ...

    def identity(self, count: int) -> dict[str, Any]:
        """Kind, location and hash of the first `count` items."""
        ...


@dataclass(frozen=True)
class ItemInputs:
    """`Inputs` over `items`; `assemble` makes a batch of names and prepared inputs.

    Only the items of the batches asked for are read. With `num_workers` threads they are read ahead, in order.
    """

    items: Items
    assemble: Assemble
    batch_size: int
    limit: int | None
    num_workers: int
    skip_bad: bool

    @property
    def count(self) -> int:
        """How many inputs there are, bad ones included."""
        return len(self.items) if self.limit is None else min(self.limit, len(self.items))

    @property
    def n_batches(self) -> int:
        return -(-self.count // self.batch_size)

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        return {"count": self.count, **self.items.identity(self.count)}

    def batches(self, *, skip: frozenset[int] = frozenset(), rank: int = 0, world: int = 1) -> Iterator[Batch]:
        wanted = [number for number in range(rank, self.n_batches, world) if number not in skip]
        if self.num_workers == 0:
            for number in wanted:
                yield self._batch(number, [self._read(index) for index in self._indices(number)])
            return
        pool = ThreadPoolExecutor(self.num_workers)
        ahead: deque[tuple[int, list[Future[Any]]]] = deque()
        try:
            for number in wanted:
                ahead.append((number, [pool.submit(self._read, index) for index in self._indices(number)]))
                if len(ahead) > _AHEAD:
                    yield self._finished(*ahead.popleft())
            while ahead:
                yield self._finished(*ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _indices(self, number: int) -> range:
        return range(number * self.batch_size, min((number + 1) * self.batch_size, self.count))

    def _read(self, index: int) -> Any:
        return read_or_error(self.items, index)

    def _finished(self, number: int, futures: list[Future[Any]]) -> Batch:
        return self._batch(number, [future.result() for future in futures])

    def _batch(self, number: int, results: list[Any]) -> Batch:
        names = [self.items.name(index) for index in self._indices(number)]
        return collect(number, names, results, self.assemble, self.skip_bad)


def read_or_error(items: Items, index: int) -> Any:
    """A prepared input, or the error that says why it is bad."""
    try:
        return items.read(index)
    except InputError as error:
        return error


def collect(number: int, names: Sequence[str], results: Sequence[Any], assemble: Assemble, skip_bad: bool) -> Batch:
    """One batch of what was read; raises the first bad input's error, or under `skip_bad` notes and leaves it out."""
    bad = {name: result for name, result in zip(names, results, strict=True) if isinstance(result, InputError)}
    if bad and not skip_bad:
        first = next(iter(bad.values()))
        count = f" ({len(bad)} bad inputs of {len(names)} in batch {number})" if len(bad) > 1 else ""
        raise InputError(f"{first.found}{count}", first.expected, first.next_step)
    kept = [(name, result) for name, result in zip(names, results, strict=True) if name not in bad]
    batch = assemble(number, tuple(name for name, _ in kept), [item for _, item in kept]) if kept else Batch(number, ())
    return replace(batch, bad={name: error.found for name, error in bad.items()})
