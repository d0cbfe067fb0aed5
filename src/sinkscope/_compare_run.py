"""Two models on the same inputs: how far their final tokens and outputs agree, and the outliers of each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinkscope._errors import InputError, NumericsError
from sinkscope.explain.edits import Distribution, logits_of, select, token_ids
from sinkscope.measure import Outliers, ResidualStream, Stack, find_stack, outliers
from sinkscope.models import Batch, Inputs, Model, TokenLayout
from sinkscope.models._appended import Appended
from sinkscope.models._labels import labels_of

OUTLIERS = ("largest", "ratio", "kurtosis", "channel_kurtosis", "largest_added")
"""What is measured of the residual stream per layer; the last of the tokens that a treatment has added."""
OnInput = Callable[[int, int | None], None]
Numbers = dict[str, float]

_TOKENS = 1 << 15
"""Most tokens in one forward pass."""
_ELEMENTS = 1 << 25
"""Most logits in one forward pass."""


@dataclass(frozen=True)
class Side:
    """A model with inputs prepared for it.

    - `layers`: those that its diagnosis has measured.
    """

    model: Model
    inputs: Inputs
    layers: Sequence[int]


@dataclass
class Measured:
    """Numbers of one model, by input.

    - `outputs`: loss and accuracy; of the second model also its agreement with the first.
    - `outliers`: by layer; the layer behind the last stands for what the last block writes.
    """

    outputs: dict[str, Numbers] = field(default_factory=dict)
    outliers: dict[str, dict[int, Numbers]] = field(default_factory=dict)


@dataclass
class Pair:
    """What was measured, and in `notes` what could not be and why: `{0}` and `{1}` stand for the two models."""

    first: Measured = field(default_factory=Measured)
    second: Measured = field(default_factory=Measured)
    notes: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True)
class Pass:
    """What one forward pass shows.

    - `final`: final tokens, behind the last norm over all tokens where there is one, without those that a treatment
      added; None where the blocks are not known.
    - `valid`: which of them are no padding.
    """

    batch: Batch
    final: Float[Tensor, "inputs tokens width"] | None
    valid: Bool[Tensor, "inputs tokens"]
    logits: Tensor | None
    outliers: list[dict[int, Numbers]]


def run_pair(first: Side, second: Side, limit: int | None, on_input: OnInput | None = None) -> Pair:
    """Run both models on the same inputs, the first `limit` of them.

    **Raises:** `InputError` when the inputs of the two do not go together; `NumericsError` for activations that are not
    finite; else as `Model.run`.
    """
    pair = Pair()
    runners = [_Runner(first), _Runner(second)]
    labels = labels_of(first.inputs)
    known = first.inputs.identity.get("count")
    total = limit if known is None else known if limit is None else min(limit, known)
    done = 0
    for one, other in zip(first.inputs.batches(), second.inputs.batches(), strict=True):
        if one.names != other.names:
            raise InputError(
                f"inputs {', '.join(one.names[:3])} of one model and {', '.join(other.names[:3])} of the other",
                "the same inputs in the same order",
                "compare diagnoses of the same inputs",
            )
        start = 0
        while start < len(one.names) and (limit is None or done < limit):
            count = min(len(one.names) - start, *(runner.rows for runner in runners))
            count = count if limit is None else min(count, limit - done)
            take = torch.arange(start, start + count)
            passes = [runner.run(_rows(batch, take)) for runner, batch in zip(runners, (one, other), strict=True)]
            _note(pair, passes, runners, labels)
            start, done = start + count, done + count
            if on_input is not None:
                on_input(done, total)
        if limit is not None and done >= limit:
            break
    return pair


class _Runner:
    """Runs one model. `rows`: how many inputs the next pass may have; one, until it is known what a pass is like."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.rows = 1
        self._added = Appended(side.model.module).count
        self._all_logits = "logits_to_keep" in inspect.signature(side.model.module.forward).parameters
        self._stack: Stack | None = None

    @property
    def stack(self) -> Stack:
        assert self._stack is not None
        return self._stack

    def run(self, batch: Batch) -> Pass:
        """One pass of a batch."""
        if self._all_logits:
            batch = replace(batch, kwargs={"logits_to_keep": 0, **batch.kwargs})
        model = self.side.model
        if self._stack is None:
            self._stack = find_stack(model, batch, self.side.layers)
        stream = ResidualStream(model.module, self.stack)
        found: list[dict[int, Numbers]] = [{} for _ in batch.names]

        def on_input(layer: int, hidden: Tensor) -> None:
            self._outliers(found, layer, hidden, batch)

        with stream.watching(on_input):
            result = model.run(batch)
            written, normed = stream.written, stream.normed
        if written is not None:
            self._outliers(found, max(self.side.layers) + 1, written, batch)
        final = written if normed is None else normed
        logits = logits_of(model.module, result)
        per_token = logits is not None and logits.dim() == 3
        tokens = final.shape[1] if final is not None else logits.shape[1] if logits is not None and per_token else 1
        words = logits[0].numel() if logits is not None and per_token else 1
        self.rows = max(1, min(_TOKENS // tokens, _ELEMENTS // words))
        return Pass(batch, final, self._valid(batch, tokens), logits, found)

    def _valid(self, batch: Batch, tokens: int) -> Bool[Tensor, "inputs tokens"]:
        """Which of the input's own tokens are no padding."""
        if batch.valid is None:
            return torch.ones(len(batch.names), tokens, dtype=torch.bool)
        return batch.valid[:, : batch.valid.shape[1] - self._added]

    def _outliers(self, found: list[dict[int, Numbers]], layer: int, hidden: Tensor, batch: Batch) -> None:
        added = self._added if layer <= max(self.side.layers) else 0
        own = hidden.shape[1] - added
        valid = self._valid(batch, own)
        if valid.shape != (hidden.shape[0], own):
            return
        measured = outliers(hidden[:, :own], valid)
        behind = hidden[:, own:].abs().flatten(1)
        for row, numbers in enumerate(_plain(measured)):
            if not np.isfinite(numbers["largest"]):
                raise NumericsError(
                    f"NaN or infinite activations before layer {layer} of {self.side.model.reference} on input "
                    f"{batch.names[row]}",
                    "finite activations",
                    "diagnose with --dtype float32: half precision overflows",
                )
            numbers["largest_added"] = float(behind[row].max()) if added else np.nan
            found[row][layer] = numbers


def _plain(measured: Outliers) -> Iterator[Numbers]:
    for largest, median, kurtosis, channels in zip(
        measured.largest.tolist(),
        measured.median.tolist(),
        measured.kurtosis.tolist(),
        measured.channel_kurtosis.tolist(),
        strict=True,
    ):
        ratio = largest / median if median > 0 else np.nan
        yield {"largest": largest, "ratio": ratio, "kurtosis": kurtosis, "channel_kurtosis": channels}


def _note(pair: Pair, passes: Sequence[Pass], runners: Sequence[_Runner], labels: Sequence[int] | None) -> None:
    """Add what one pass of each model shows. Inputs of a dataset, which may have labels, are named by their number."""
    places = _same_tokens(pair, passes)
    for row, name in enumerate(passes[0].batch.names):
        sides = (pair.first, pair.second)
        given = [_distribution(seen, row, runner.stack.causal) for seen, runner in zip(passes, runners, strict=True)]
        for number, (side, seen, output) in enumerate(zip(sides, passes, given, strict=True)):
            side.outliers[name] = seen.outliers[row]
            side.outputs[name] = {"loss": np.nan if output is None or output.loss is None else output.loss}
            if labels is not None:
                side.outputs[name]["accuracy"] = _correct(pair, number, seen, row, labels[int(name)])
        if places is None:
            continue
        agreement = pair.second.outputs[name]
        agreement |= _agreement(pair, passes, row, places)
        agreement |= _output_agreement(pair, passes, row, given[0])


def _same_tokens(pair: Pair, passes: Sequence[Pass]) -> list[Int[Tensor, " tokens"]] | None:
    """Which tokens of both models are the same, in the same order; None where that cannot be told."""
    ids = [token_ids(seen.batch) for seen in passes]
    if ids[0] is not None and ids[1] is not None and not torch.equal(ids[0], ids[1]):
        pair.notes["their tokenizers differ, so neither final tokens nor outputs are compared"] = None
        return None
    counts = [seen.valid.shape[1] for seen in passes]
    if counts[0] == counts[1]:
        return [torch.arange(counts[0])] * 2
    kept = [_without_registers(seen.batch.layouts[0], count) for seen, count in zip(passes, counts, strict=True)]
    if kept[0] is None or kept[1] is None or len(kept[0]) != len(kept[1]):
        said = f"{{0}} has {counts[0]} tokens and {{1}} {counts[1]} on the same input, so final tokens are not compared"
        pair.notes[said] = None
        return None
    return [kept[0], kept[1]]


def _without_registers(layout: TokenLayout | None, count: int) -> Int[Tensor, " tokens"] | None:
    if layout is None:
        return None
    return torch.tensor([place for place, role in enumerate(layout.roles[:count]) if role != "register"])


def _agreement(pair: Pair, passes: Sequence[Pass], row: int, places: Sequence[Tensor]) -> Numbers:
    """`final_change` and `final_cosine` of one input."""
    tokens = []
    for number, (seen, own) in enumerate(zip(passes, places, strict=True)):
        if seen.final is None or seen.final.shape[1] != seen.valid.shape[1]:
            pair.notes[f"no residual blocks are known of {{{number}}}, so final tokens are not compared"] = None
            return {}
        tokens.append(seen.final[row].double()[own[seen.valid[row, own]]])
    before, after = tokens
    if before.shape != after.shape:
        said = f"final tokens are {before.shape[-1]} wide in {{0}} and {after.shape[-1]} in {{1}}: not compared"
        pair.notes[said] = None
        return {}
    change = (after - before).square().sum() / before.square().sum()
    cosine = torch.nn.functional.cosine_similarity(before, after, dim=-1).mean()
    return {"final_change": float(change.sqrt()), "final_cosine": float(cosine)}


def _output_agreement(pair: Pair, passes: Sequence[Pass], row: int, before: Distribution | None) -> Numbers:
    first, second = (seen.logits for seen in passes)
    if before is None or first is None or second is None:
        return {}
    if first.shape != second.shape:
        said = f"logits are {tuple(first.shape[1:])} in {{0}} and {tuple(second.shape[1:])} in {{1}}: not compared"
        pair.notes[said] = None
        return {}
    change = before.change(second[row])
    return {"output_kl": change.kl, "output_top1": change.top1}


def _distribution(seen: Pass, row: int, causal: bool) -> Distribution | None:
    """The output of one input; None where there is none over its tokens or over classes."""
    if seen.logits is None:
        return None
    logits, ids = seen.logits[row], token_ids(seen.batch)
    if logits.dim() == 1:
        return Distribution(logits, None, None)
    if len(logits) != seen.valid.shape[1]:
        return None
    own = ids[row].to(logits.device) if causal and ids is not None else None
    return Distribution(logits, seen.valid[row].to(logits.device), own)


def _correct(pair: Pair, number: int, seen: Pass, row: int, label: int) -> float:
    """1 where the largest logit is the label's, NaN without logits over classes that have the label."""
    if seen.logits is None or seen.logits.dim() != 2 or label >= seen.logits.shape[1]:
        pair.notes[f"{{{number}}} has no logits for the classes of the dataset, so it has no accuracy"] = None
        return np.nan
    return float(int(seen.logits[row].argmax()) == label)


def _rows(batch: Batch, take: Int[Tensor, " rows"]) -> Batch:
    """Some inputs of a batch."""
    size = len(batch.names)
    kwargs: Mapping[str, Any] = select(dict(batch.kwargs), take, size)
    rows = take.tolist()
    return Batch(
        batch.index,
        tuple(batch.names[row] for row in rows),
        select(batch.args, take, size),
        kwargs,
        None if batch.valid is None else batch.valid[take],
        tuple(batch.layouts[row] for row in rows if row < len(batch.layouts)) or (None,) * len(rows),
    )
