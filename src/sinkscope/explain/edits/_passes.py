"""Forward passes with edited rows: from the edited layer on where the model allows it, else whole."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sinkscope._errors import CaptureError, NumericsError
from sinkscope.capture import AttentionCall
from sinkscope.explain.edits._apply import apply_edits, require_identity
from sinkscope.explain.edits._changes import FinalTokens, tokens_of
from sinkscope.explain.edits._donors import Donors
from sinkscope.explain.edits._frozen import freeze
from sinkscope.explain.edits._gather import Layer, Rows
from sinkscope.explain.edits._head import Head
from sinkscope.explain.edits._jobs import Control, Job, controls
from sinkscope.explain.edits._options import EditOptions
from sinkscope.explain.edits._outputs import logits_of
from sinkscope.explain.edits._stream import Record, Stream, Tail, Unfit, select
from sinkscope.explain.edits._targets import Target
from sinkscope.models import Batch, Model

NOISE = 1e-5
"""Largest relative change of the final tokens that an edit of nothing may make in float32 or better."""

_WAYS: tuple[int | None, ...] = (0, 1, None)
"""Axis of the inputs in the blocks' hidden states for passes that begin at the edited layer; None: whole passes."""
_MISFIT = (Unfit, RuntimeError, ValueError, IndexError, TypeError, AssertionError, AttributeError, KeyError)


@dataclass
class Plain:
    """The unedited pass of a batch, and what edits need of it.

    - `valid`: tokens that are no padding.
    - `recipients`: queries that see the sink, itself aside.
    - `calls`: all of them by kind and number, where later ones are to be frozen.
    """

    batch: Batch
    valid: Bool[Tensor, "batch tokens"]
    record: Record = field(default_factory=Record)
    drawn: dict[Target, list[Control]] = field(default_factory=dict)
    recipients: dict[Target, Tensor] = field(default_factory=dict)
    calls: dict[tuple[str, int], AttentionCall] = field(default_factory=dict)


@dataclass(frozen=True)
class Edited:
    """A pass with edited rows: the final tokens, the logits if there are any, and the writes of the edits."""

    tokens: FinalTokens
    logits: Tensor | None
    writes: list[float | None]


class Passes:
    """Runs the passes of one model. `on_call` is to be given every call."""

    def __init__(self, model: Model, stream: Stream, donors: Donors, options: EditOptions) -> None:
        self._model, self._stream, self._donors, self._options = model, stream, donors, options
        self._way: dict[int, int] = {}
        self._checked: set[int] = set()
        self._handle: Callable[[AttentionCall], None] | None = None
        self._all_logits = "logits_to_keep" in inspect.signature(model.module.forward).parameters

    def on_call(self, call: AttentionCall) -> None:
        """Pass a call on to whoever runs the pass."""
        self._stream.on_call(call)
        if self._handle is not None:
            self._handle(call)

    def plain(self, batch: Batch, rows: Rows) -> Plain:
        """The unedited pass of a batch, with the keys that controls take.

        **Raises:** `NumericsError` for a head whose output is not its values under its weights, and for values that are
        not those of the first pass.
        """
        found: list[Plain] = []

        def on_call(call: AttentionCall) -> None:
            if not found:
                everywhere = torch.ones(call.shape[0], call.shape[2], dtype=torch.bool)
                found.append(Plain(batch, everywhere if batch.valid is None else batch.valid))
            if self._options.freeze_all:
                found[0].calls[call.kind, call.layer] = call
            if call.kind == "self" and call.layer in rows:
                self._note(call, rows, found[0])

        record = self._run(batch, on_call)
        found[0].record = record
        return found[0]

    def edited(self, plain: Plain, layer: int, of: Layer, at: Sequence[tuple[int, Job]], take: Sequence[int]) -> Edited:
        """Run the inputs `take` of a batch, among them those that take an edit, and compare the final tokens.

        Rows without an edit must come out as in the unedited pass; where they do not, the next way of running is tried.

        **Raises:** `CaptureError` when the final tokens cannot be told; `NumericsError` when no way gives the unedited
        rows as they were, or a result is not finite.
        """
        known = self._way.get(layer, 0)
        for number, way in enumerate(_WAYS[known:], known):
            last = number == len(_WAYS) - 1
            try:
                edited = self._attempt(plain, layer, of, at, torch.tensor(take), way)
                noise = edited.tokens.largest([row for row in range(len(take)) if row not in dict(at)])
            except _MISFIT as error:
                if last and isinstance(error, Unfit):
                    raise CaptureError(
                        f"the effect of edits in layer {layer} ({of.module}) of {self._model.reference}: {error}",
                        "attention inside residual blocks that return the tokens",
                        "verify heads of other layers",
                    ) from error
                if last:
                    raise
                continue
            if noise <= self._allowed:
                self._way[layer] = number
                return edited
        raise self._not_deterministic(
            layer, of.module, "an edit that changes nothing changes the final tokens", "size", noise
        )

    @property
    def _allowed(self) -> float:
        return max(NOISE, 4 * torch.finfo(getattr(torch, self._model.dtype)).eps)

    def _require_same_values(self, head: Head, target: Target) -> None:
        """What is random before the edited layer does not show in passes that begin there."""
        values, before = head.values.double(), self._donors.sink_value(target).double()
        size = torch.linalg.vector_norm(values, dim=1).mean().clamp(min=1e-30)
        change = float(torch.linalg.vector_norm(values[target.sink] - before) / size)
        if not change <= self._allowed:
            what = f"the values of head {target.head} on {target.input} change from pass to pass"
            raise self._not_deterministic(target.layer, head.call.module, what, "mean size", change)

    def _not_deterministic(self, layer: int, module: str, what: str, of: str, change: float) -> NumericsError:
        return NumericsError(
            f"layer {layer} ({module}) of {self._model.reference}: {what} by {change:.1e} of their {of}, so the model "
            "is not deterministic in evaluation mode",
            f"a change of at most {self._allowed:.0e}",
            "switch off what is random in its forward (dropout, noise, sampling), or run it with --dtype float32",
        )

    def _note(self, call: AttentionCall, rows: Rows, plain: Plain) -> None:
        for row, target in rows[call.layer]:
            head, valid = Head(call, row, target.head), plain.valid[row].to(call.out.device)
            self._require_same_values(head, target)
            if call.layer not in self._checked:
                require_identity(head, valid, target)
            plain.drawn[target] = controls(head, target, valid, self._options)
            sees = head.sees(target.sink) & valid
            sees[target.sink] = False
            plain.recipients[target] = sees
        self._checked.add(call.layer)

    def _attempt(
        self, plain: Plain, layer: int, of: Layer, at: Sequence[tuple[int, Job]], take: Tensor, way: int | None
    ) -> Edited:
        batch, size = plain.batch, len(plain.batch.names)
        last = plain.record.final(layer)
        if last is None:
            raise Unfit("its attention runs outside any block whose output is hidden states")
        writes: list[list[float | None]] = []

        def on_call(call: AttentionCall) -> None:
            if call.kind == "self" and call.layer == layer:
                if call.shape[0] != len(take):
                    raise Unfit(f"attention over {call.shape[0]} rows instead of {len(take)}")
                valid = plain.valid[take].to(call.out.device)
                writes.append(apply_edits(call, at, valid, of.geometry))
            elif writes and self._options.freeze_all:
                freeze(call, plain.calls[call.kind, call.layer], take, size)

        if self._all_logits:
            batch = replace(batch, kwargs={**batch.kwargs, "logits_to_keep": 0})
        if way is None:
            args, kwargs = select((batch.args, dict(batch.kwargs)), take, size)
            batch = replace(batch, args=args, kwargs=kwargs, names=tuple(batch.names[row] for row in take.tolist()))
            record = self._run(batch, on_call, keep=last)
        else:
            start = plain.record.inside["self", layer]
            assert start is not None  # final() has found it
            record = self._run(batch, on_call, Tail(plain.record, start, take, size, way), last)
        if len(writes) != 1 or len(record.ran) != len(plain.record.ran):
            raise Unfit("the edited pass does not run the blocks of the unedited one")
        tokens = self._final(plain, record, last, take)
        logits = logits_of(self._model.module, record.result)
        if logits is not None and len(logits) != len(take):
            raise Unfit(f"an output of {len(logits)} rows instead of {len(take)}")
        return Edited(tokens, logits, writes[0])

    def _final(self, plain: Plain, record: Record, last: int, take: Tensor) -> FinalTokens:
        before, after = plain.record.ran[last], record.ran[last]
        hidden = _pair(before.hidden, after.hidden, plain.valid, take)
        if hidden is None:
            raise Unfit(f"the output of {after.name} does not hold the tokens")
        normed = _pair(before.norm, after.norm, plain.valid, take) or (None, None)
        return FinalTokens(plain.valid[take], *hidden, *normed)

    def _run(
        self, batch: Batch, on_call: Callable[[AttentionCall], None], tail: Tail | None = None, keep: int | None = None
    ) -> Record:
        self._handle = on_call
        try:
            return self._stream.run(lambda: self._model.run(batch), tail, keep)
        finally:
            self._handle = None


def _pair(before: Any, after: Any, valid: Tensor, take: Tensor) -> tuple[Tensor, Tensor] | None:
    """Tokens of the rows before and after, None where they are not there. The axis of the inputs is the one that is as
    long as there are rows, which `take` is chosen to make the only one."""
    if before is None or after is None:
        return None
    size, tokens = valid.shape
    axis = 0 if after.shape[0] == len(take) else 1
    found = tokens_of(before, size, tokens, axis), tokens_of(after, len(take), tokens, axis)
    if found[0] is None or found[1] is None:
        return None
    return found[0].index_select(0, take.to(found[0].device)), found[1]


def other_than(rows: int, sizes: Sequence[int]) -> int:
    """The next number from `rows` on that is none of these sizes: so many rows cannot be mistaken for them."""
    while rows in sizes:
        rows += 1
    return rows
