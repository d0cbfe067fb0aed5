"""All edits of chosen heads over all their inputs, part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sinkscope._errors import NumericsError
from sinkscope.artifact import EDIT_COLUMNS, EDITS, done_edits, write_edits
from sinkscope.capture import AttentionCall, capture
from sinkscope.explain.edits._donors import Donors
from sinkscope.explain.edits._gather import Gathered, Layer, Rows, gather, rows_of_batch
from sinkscope.explain.edits._jobs import Job, jobs
from sinkscope.explain.edits._options import EditOptions
from sinkscope.explain.edits._outputs import Distribution, logits_of, token_ids
from sinkscope.explain.edits._passes import Edited, Passes, Plain, other_than
from sinkscope.explain.edits._stream import Stream
from sinkscope.explain.edits._targets import Target, targets_by_input
from sinkscope.models import Inputs, Model

_TOKENS = 1 << 15
"""Most tokens in one forward pass: more make it no faster."""
_ELEMENTS = 1 << 27
"""Most logits, or weights of one layer where the model forms their matrix, in one forward pass."""


def edit_heads(
    model: Model,
    inputs: Inputs,
    chosen: pd.DataFrame,
    out: Path,
    options: EditOptions,
    on_part: Callable[[int, int], None] | None = None,
) -> None:
    """Edit one head at a time on its inputs, and write what changes as parts in `out`/edits; parts that are there
    already are kept.

    An edit changes the head's output in place while the model's own forward runs, with the head's weights A as they
    are: o_i becomes o_i + A_is (v' - v_s) for every valid query i, s being the head's sink (Fesser et al. 2026, section
    1.5 of its causal study). Later layers respond, unless `options.freeze_all`.

    - `noop`: v' = v_s. `zero`: v' = 0. `mean`: the mean of v_s over the head's other inputs. `donor`: v_s of another
      input, at its own sink. `ordinary`: the value at a random valid token of another input that is not its sink.
      `random`: a random vector as long as v_s.
    - `redirect`: the head does not see s, its weights on everything else, virtual columns included, are renormalised;
      a query that sees nothing else gets 0. Where weights may sum to anything, nothing is renormalised.
    - `control`: the values of random other keys are 0, drawn until their weight reaches that of the sink. A single draw
      where all other keys together do not have that much.
    - `other_head`: v_s of another head of the layer, at the same s, is 0 there.

    `mean`, `donor` and `ordinary` need two inputs of the head, `other_head` two heads: otherwise they are left out.

    Many rows, each one input under one edit, share a forward pass that begins at the edited layer; where the model does
    not allow that, whole passes are made. An unedited row in every pass tells.

    **Arguments:**

    - `inputs`: those of the diagnosis; read twice.
    - `chosen`: rows of the events to edit: `input, layer, head, sink, mass`.
    - `out`: the artifact's folder.
    - `on_part`: called with the number of parts done and of all.

    **Raises:** `OptionError` for a head that does not exist; `CaptureError` for a layer that is not captured, or in
    which the effect of an edit cannot be followed; `InputError` when inputs are missing or share a name;
    `NumericsError` for a model that is not deterministic, a head that does more than mix values, or results that are
    not finite; `ResourceError`, `ArtifactError` from running and writing.
    """
    by_input = targets_by_input(chosen)
    found = Gathered(Donors(options.donors, options.seed))
    listener: Gathered | Passes = found

    def on_call(call: AttentionCall) -> None:
        listener.on_call(call)

    with torch.inference_mode(), capture(model.module, on_call) as calls:
        gather(model, inputs, by_input, found, calls)
        parts = {(layer, batch) for batch, layers in found.parts.items() for layer in layers}
        done = done_edits(out, options.number) & parts
        stream = Stream(model.module, calls)
        listener = passes = Passes(model, stream, found.donors, options)
        whole = {batch for batch, layers in found.parts.items() if all((layer, batch) in done for layer in layers)}
        with stream.watching(found.blocks):
            for batch in inputs.batches(skip=frozenset(found.idle | whole)):
                rows = rows_of_batch(batch, by_input)
                rows = {layer: rows[layer] for layer in sorted(rows) if (layer, batch.index) not in done}
                plain = passes.plain(batch, rows)
                for layer in rows:
                    table, change, at = _part(model, passes, plain, rows, layer, found, options)
                    write_edits(out, layer, batch.index, table, change, at, number=options.number)
                    done |= {(layer, batch.index)}
                    if on_part is not None:
                        on_part(len(done), len(parts))


def _part(
    model: Model, passes: Passes, plain: Plain, rows: Rows, layer: int, found: Gathered, options: EditOptions
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """The rows of one layer and batch, and the changes that go with some of them."""
    of = found.layers[layer]
    wanted = [
        job
        for row, target in rows[layer]
        for job in jobs(target, row, found.donors, plain.drawn[target], of.heads, options)
    ]
    targets: dict[int, list[Target]] = {}
    for row, target in rows[layer]:
        targets.setdefault(row, []).append(target)
    measured: dict[tuple[Target, str, int], dict[str, Any]] = {}
    for chunk in _chunks(wanted, _limit(plain, found, model, options)):
        take, at = _rows_of_pass(chunk, plain)
        edited = passes.edited(plain, layer, of, at, take)
        for record in _measured(model, plain, found, layer, of, edited, take, at, targets):
            key = record["target"], record["edit"], record["draw"]
            known = measured.get(key)  # an edit of nothing is in every pass of its input: the worst is kept
            if known is None or known["final"] < record["final"]:
                measured[key] = record
    names = {name: row for row, name in enumerate(plain.batch.names)}
    order = sorted(measured, key=lambda key: (names[key[0].input], key[0].head, EDITS.index(key[1]), key[2]))
    records = [measured[key] for key in order]
    table = pd.DataFrame({column.name: [r[column.name] for r in records] for column in EDIT_COLUMNS})
    kept = [number for number, r in enumerate(records) if r["edit"] in ("zero", "donor")]
    change = torch.stack([records[number]["change"] for number in kept]).cpu().numpy()
    return table, change, np.array(kept, dtype=np.int32)


def _limit(plain: Plain, found: Gathered, model: Model, options: EditOptions) -> int:
    """Most rows of a pass."""
    tokens = plain.valid.shape[1]
    rows = min(options.rows, _TOKENS // tokens)
    logits = logits_of(model.module, plain.record.result)
    if logits is not None and logits.dim() == 3:
        rows = min(rows, _ELEMENTS // (tokens * logits.shape[2]))
    if found.matrices:
        rows = min(rows, _ELEMENTS // (found.matrices * tokens * tokens))
    return max(rows, 4)


def _chunks(wanted: Sequence[Job], limit: int) -> Iterator[list[Job]]:
    """Jobs that share a pass, in order. Every input among them takes a row of its own, two are left for padding."""
    chunk: list[Job] = []
    for job in wanted:
        inputs = {other.row for other in chunk} | {job.row}
        if chunk and len(chunk) + 1 + len(inputs) > limit - 2:
            yield chunk
            chunk = []
        chunk.append(job)
    if chunk:
        yield chunk


def _rows_of_pass(chunk: Sequence[Job], plain: Plain) -> tuple[list[int], list[tuple[int, Job]]]:
    """Rows of the batch, unedited ones first, and which row takes which job."""
    unedited = sorted({job.row for job in chunk})
    count = other_than(len(unedited) + len(chunk), plain.valid.shape) - len(chunk)
    unedited += [unedited[0]] * (count - len(unedited))
    return unedited + [job.row for job in chunk], list(enumerate(chunk, count))


def _measured(
    model: Model,
    plain: Plain,
    found: Gathered,
    layer: int,
    of: Layer,
    edited: Edited,
    take: Sequence[int],
    at: Sequence[tuple[int, Job]],
    targets: dict[int, list[Target]],
) -> Iterator[dict[str, Any]]:
    """What a pass says of its edits, and of the edit of nothing for every head of its inputs."""
    if not edited.tokens.finite:
        raise NumericsError(
            f"NaN or infinite final tokens after edits in layer {layer} ({of.module}) of {model.reference}",
            "finite activations",
            "run with --dtype float32: half precision overflows",
        )
    first = {take[row]: row for row in reversed(range(len(take) - len(at)))}
    outputs = {row: _distribution(plain, found, edited, row, at_row) for row, at_row in first.items()}
    nothing = [
        (at_row, Job(target, row, "noop"), 0.0 if of.geometry is not None else None)
        for row, at_row in first.items()
        for target in targets[row]
    ]
    made = [(row, job, write) for (row, job), write in zip(at, edited.writes, strict=True)]
    for row, job, write in nothing + made:
        target, valid = job.target, plain.valid[job.row].clone()
        valid[target.sink] = False
        change = edited.tokens.of(row, valid, plain.recipients[target])
        before = outputs[job.row]
        output = None if before is None or edited.logits is None else before.change(edited.logits[row])
        yield {
            "target": target,
            "input": target.input,
            "layer": target.layer,
            "head": target.head,
            "sink": target.sink,
            "mass": target.mass,
            "edit": job.edit,
            "draw": job.draw,
            "donor": job.donor,
            "budget": None if job.control is None else job.control.budget,
            "write": write,
            "final": change.final,
            "final_norm": change.final_norm,
            "common": change.common,
            "output_kl": None if output is None else output.kl,
            "output_top1": None if output is None else output.top1,
            "output_loss": None if output is None else output.loss,
            "change": change.change,
        }


def _distribution(plain: Plain, found: Gathered, edited: Edited, row: int, at_row: int) -> Distribution | None:
    """The output of an unedited row; None where there is none over the tokens or over classes."""
    if edited.logits is None:
        return None
    logits, ids = edited.logits[at_row], token_ids(plain.batch)
    if logits.dim() == 1:
        return Distribution(logits, None, None)
    if len(logits) != plain.valid.shape[1]:
        return None
    valid: Tensor = plain.valid[row].to(logits.device)
    next_token = found.causal and ids is not None
    return Distribution(logits, valid, ids[row].to(logits.device) if next_token and ids is not None else None)
