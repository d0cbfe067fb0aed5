"""The first pass over the inputs: values for donors, and what is to be known of the model's layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from sinkscope._errors import CaptureError, InputError
from sinkscope.capture import AttentionCall, Calls
from sinkscope.explain.edits._donors import Donors
from sinkscope.explain.edits._targets import Target
from sinkscope.measure import WriteGeometry, looks_back, write_geometry
from sinkscope.models import Batch, Inputs, Model

Rows = Mapping[int, Sequence[tuple[int, Target]]]
"""Of one batch: row and target, by layer."""


@dataclass(frozen=True)
class Layer:
    """A layer whose heads are edited."""

    module: str
    heads: int
    geometry: WriteGeometry | None


@dataclass
class Gathered:
    """What the first pass tells.

    - `blocks`: names of the residual blocks, or attention modules without one.
    - `parts`: layers with targets, by batch.
    - `causal`: no query of any layer sees a later key.
    - `matrices`: the largest number of heads of a layer that forms the matrix of weights, 0 where none does.
    """

    donors: Donors
    layers: dict[int, Layer] = field(default_factory=dict)
    blocks: set[str] = field(default_factory=set)
    parts: dict[int, list[int]] = field(default_factory=dict)
    idle: set[int] = field(default_factory=set)
    causal: bool = True
    matrices: int = 0
    _rows: Rows = field(default_factory=dict)
    _valid: Tensor | None = None

    def on_call(self, call: AttentionCall) -> None:
        """Keep what is needed of a call."""
        self.blocks.add(call.block)
        self.causal = self.causal and call.kind == "self" and looks_back(call)
        if call.weights is not None:
            self.matrices = max(self.matrices, call.shape[1])
        rows = self._rows.get(call.layer, ()) if call.kind == "self" else ()
        if not rows:
            return
        self.donors.gather(call, rows, _valid(self._valid, call))
        if call.layer not in self.layers:
            dtype = torch.promote_types(call.v.dtype, torch.float32)
            geometry = None if call.projection is None else write_geometry(call.projection, call.shape[1], dtype)
            self.layers[call.layer] = Layer(call.module, call.shape[1], geometry)

    def begin(self, batch: Batch, rows: Rows) -> None:
        """The calls that follow are of this batch."""
        self._rows, self._valid = rows, batch.valid
        self.parts[batch.index] = sorted(rows)


def rows_of_batch(batch: Batch, by_input: Mapping[str, Sequence[Target]]) -> Rows:
    """The targets among the inputs of a batch."""
    found: dict[int, list[tuple[int, Target]]] = {}
    for row, name in enumerate(batch.names):
        for target in by_input.get(name, ()):
            found.setdefault(target.layer, []).append((row, target))
    return found


def gather(
    model: Model, inputs: Inputs, by_input: Mapping[str, Sequence[Target]], gathered: Gathered, calls: Calls
) -> None:
    """Run every input that has targets once.

    **Raises:** `InputError` when inputs are missing or two have one name; `CaptureError` when a layer was not captured.
    """
    left = set(by_input)
    for batch in inputs.batches():
        rows = rows_of_batch(batch, by_input)
        if not rows:
            gathered.idle.add(batch.index)
            continue
        names = [name for name in batch.names if name in by_input]
        again = [name for number, name in enumerate(names) if name not in left or name in names[:number]]
        if again:
            raise InputError(f"two inputs are called {again[0]}", "one name per input", "rename one, diagnose anew")
        left.difference_update(names)
        gathered.begin(batch, rows)
        model.run(batch)
        missing = sorted(set(rows) - set(gathered.layers))
        if missing:
            raise CaptureError(
                f"layer {missing[0]} of {model.reference}, whose attention is not captured",
                f"a layer that is: {', '.join(map(str, sorted(gathered.layers))) or 'none of those asked for is'}",
                "edit heads of layers that the diagnosis has measured",
            )
        calls.settle()
    if left:
        raise InputError(
            f"no input is called {min(left)} ({len(left)} of {len(by_input)} are missing)",
            "the inputs of the diagnosis",
            "verify with the inputs that were diagnosed, in the same order",
        )


def _valid(valid: Tensor | None, call: AttentionCall) -> Bool[Tensor, "batch tokens"]:
    if valid is not None:
        return valid
    return torch.ones(call.shape[0], call.shape[2], dtype=torch.bool)
