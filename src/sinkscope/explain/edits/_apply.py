"""Edits at the attention output: exact, in place, with the head's weights as they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinkscope._errors import NumericsError
from sinkscope.capture import AttentionCall
from sinkscope.explain.edits._head import Head
from sinkscope.explain.edits._jobs import Job
from sinkscope.explain.edits._targets import Target
from sinkscope.measure import WriteGeometry

_IDENTITY = {torch.float64: 1e-9, torch.float32: 1e-4}
_IDENTITY_HALF = 3e-2
_UNRESOLVED = 16
"""A virtual column whose weight is less than so many units of rounding of a row's sum counts as having none."""


@dataclass(frozen=True)
class _Parts:
    """What edits of one head need of its weights.

    - `column`: A_is.
    - `rest`: sum over the other keys of A_ij v_j, and `left` the sum of those weights, virtual columns in both.
    - `controls`: sum over the keys of each control of A_ij v_j.
    """

    column: Float[Tensor, " queries"]
    rest: Float[Tensor, "queries value_dim"]
    left: Float[Tensor, " queries"]
    controls: Float[Tensor, "draws queries value_dim"]


def require_identity(head: Head, valid: Bool[Tensor, " tokens"], target: Target) -> None:
    """The head's output is the sum of its values under its weights, which is what makes every edit exact: recomputed in
    float64 from what the call holds. Where a virtual column takes the rest of a row it may add a vector of its own.

    **Raises:** `NumericsError` naming the layer when it is not.
    """
    values = head.values.double()
    out = head.out.double()[valid]
    blocks = [(weights @ values, weights.sum(1)) for _, weights in head.weights(torch.float64)]
    again, sums = (torch.cat(parts)[valid] for parts in zip(*blocks, strict=True))
    if head.call.rows == "at most one":
        free = (1 - sums)[:, None]
        again = again + free * (free * (out - again)).sum(0) / free.square().sum().clamp(min=1e-30)
    error = torch.linalg.vector_norm(again - out) / torch.linalg.vector_norm(out).clamp(min=1e-30)
    allowed = _IDENTITY.get(head.call.out.dtype, _IDENTITY_HALF)
    if not bool(error <= allowed):
        raise NumericsError(
            f"the output of head {target.head} of layer {target.layer} ({head.call.module}) differs from its weights "
            f"times its values by {float(error):.1e} of its size",
            f"at most {allowed:.0e}, as {head.call.out.dtype} allows",
            "verify heads of other layers; this attention does more than mix values",
        )


def apply_edits(
    call: AttentionCall,
    at: Sequence[tuple[int, Job]],
    valid: Bool[Tensor, "rows tokens"],
    geometry: WriteGeometry | None,
) -> list[float | None]:
    """Edit the rows of a call in place.

    **Arguments:**

    - `at`: which row takes which edit.
    - `valid`: tokens of every row that are no padding; the outputs of other queries stay as they are.

    **Returns:** per edit the relative change of the changed head's write, None without a projection.
    """
    groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for number, (_, job) in enumerate(at):
        groups[job.row, job.target.head if job.other is None else job.other].append(number)
    writes: list[float | None] = [None] * len(at)
    for (_, number_of_head), members in groups.items():
        sinks: defaultdict[int, list[int]] = defaultdict(list)
        for number in members:  # one sink per head, and those of heads that took this one for comparison
            sinks[at[number][1].target.sink].append(number)
        first = at[members[0]][0]
        head = Head(call, first, number_of_head)
        before = head.out.to(head.dtype, copy=True)
        for sink, numbers in sinks.items():
            drawn = [at[number][1].control for number in numbers]
            keys = [control.keys for control in drawn if control is not None]
            parts = _parts(head, sink, keys, before)
            used = 0
            for number in numbers:
                row, job = at[number]
                change = _change(job, head, parts, before, used)
                used += job.control is not None
                change[~valid[row]] = 0
                writes[number] = _relative_write(change, before, valid[row], sink, number_of_head, geometry)
                call.out[row, number_of_head] = (before + change).to(call.out.dtype)
    return writes


def _parts(head: Head, sink: int, controls: Sequence[Tensor], before: Tensor) -> _Parts:
    values = head.values.to(head.dtype)
    others = values.clone()
    others[sink] = 0
    removed = torch.cat([others, *(values * keys[:, None] for keys in controls)], 1)  # one product for all of them
    sums = torch.ones(len(values), 1, dtype=head.dtype, device=values.device)
    sums[sink] = 0  # 1 - A_is would be all rounding where A_is is nearly 1
    removed = torch.cat([removed, sums], 1)
    blocks = [(weights[:, sink], weights @ removed) for _, weights in head.weights(head.dtype)]
    column, mixed = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    left = mixed[:, -1]
    rest, *drawn = torch.split(mixed[:, :-1], values.shape[1], 1)
    if head.call.rows == "at most one" and not head.call.virtual_keys:
        virtual = 1 - left - column
        known = virtual > _UNRESOLVED * torch.finfo(head.dtype).eps
        rest = rest + (before - rest - column[:, None] * values[sink]) * known[:, None]
        left = left + virtual * known
    return _Parts(column, rest, left, torch.stack(drawn) if drawn else rest.new_zeros(0, *rest.shape))


def _change(job: Job, head: Head, parts: _Parts, before: Tensor, used: int) -> Tensor:
    if job.control is not None:
        return -parts.controls[used]
    if job.edit == "redirect":
        if head.call.rows == "any":  # nothing is normalised, so nothing is left to renormalise
            return parts.rest - before
        left = parts.left[:, None]
        return torch.where(left > 0, parts.rest / left, 0.0) - before
    own = head.values[job.target.sink].to(head.dtype)
    value = torch.zeros_like(own) if job.value is None else job.value.to(own)
    return parts.column[:, None] * (value - own)


def _relative_write(
    change: Tensor, before: Tensor, valid: Tensor, sink: int, head: int, geometry: WriteGeometry | None
) -> float | None:
    if geometry is None:
        return None
    counted = valid.clone()
    counted[sink] = False
    factor = geometry.factor[head].mT
    energies = [(x[counted] @ factor).double().square().sum() for x in (change, before)]
    return float((energies[0] / energies[1]).sqrt()) if energies[1] > 0 else None
