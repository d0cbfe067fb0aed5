"""The edits of one head on one input, each with what it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinkscope.explain.edits._donors import Donors
from sinkscope.explain.edits._head import Head
from sinkscope.explain.edits._options import EditOptions
from sinkscope.explain.edits._targets import Target


@dataclass(frozen=True)
class Control:
    """Random keys whose weight together reaches that of the sink, or all there are; `budget` is the ratio."""

    keys: Bool[Tensor, " keys"]
    budget: float


@dataclass(frozen=True)
class Job:
    """One edit.

    - `row`: of the input in its batch.
    - `value`: what is put in the place of v_s.
    - `control`: the keys whose values become 0.
    - `other`: the head whose v_s becomes 0, instead of the target's.
    """

    target: Target
    row: int
    edit: str
    draw: int = 0
    donor: str | None = None
    value: Float[Tensor, " value_dim"] | None = None
    control: Control | None = None
    other: int | None = None


def controls(head: Head, target: Target, valid: Bool[Tensor, " tokens"], options: EditOptions) -> list[Control]:
    """Draws of keys other than the sink, one key after the other until the sum over valid queries of their weights (of
    their sizes, where some are negative) reaches the sink's. Where all keys together have less there is one draw."""
    totals = torch.zeros(len(head.values), dtype=head.dtype, device=head.values.device)
    for block, weights in head.weights(head.dtype):
        totals += (weights * valid[block, None]).abs().sum(0)
    sums = totals.double().cpu().numpy()
    others = valid.cpu().numpy().copy()
    others[target.sink] = False
    places = np.flatnonzero(others)
    generator, found = target.generator(options.seed, "control"), list[Control]()
    for _ in range(options.draws):
        order = generator.permutation(places)
        reached = np.cumsum(sums[order])
        count = int(np.searchsorted(reached, sums[target.sink])) + 1
        if not len(places) or sums[target.sink] <= 0:
            return []
        keys = torch.zeros(len(sums), dtype=torch.bool)
        keys[torch.from_numpy(order[:count])] = True
        budget = float(reached[min(count, len(order)) - 1] / sums[target.sink])
        found.append(Control(keys.to(totals.device), budget))
        if count >= len(order):
            return found[-1:]
    return found


def jobs(
    target: Target, row: int, donors: Donors, drawn: Sequence[Control], heads: int, options: EditOptions
) -> Iterator[Job]:
    """All edits of a target but `noop`, which is the same for all heads.

    `mean`, `donor` and `ordinary` need another input of the head, `other_head` another head; without them they are
    left out.
    """
    value = donors.sink_value(target)
    yield Job(target, row, "zero", value=torch.zeros_like(value))
    mean = donors.mean(target)
    if mean is not None:
        yield Job(target, row, "mean", value=mean)
    for draw, (donor, sink_value, ordinary) in enumerate(donors.of(target)):
        yield Job(target, row, "donor", draw, donor.input, sink_value)
        if ordinary is not None:
            yield Job(target, row, "ordinary", draw, donor.input, ordinary)
    yield Job(target, row, "redirect")
    for draw, control in enumerate(drawn):
        yield Job(target, row, "control", draw, control=control)
    direction = torch.from_numpy(target.generator(options.seed, "random").standard_normal(len(value)))
    size = torch.linalg.vector_norm(value.double())
    yield Job(target, row, "random", value=direction.to(size) * size / torch.linalg.vector_norm(direction))
    if heads > 1:
        others = [head for head in range(heads) if head != target.head]
        yield Job(target, row, "other_head", other=int(target.generator(options.seed, "other_head").choice(others)))
