"""Verdicts for a finished diagnosis: its model and inputs again, edits of its sink heads, what they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from sinkscope._errors import InputError, OptionError
from sinkscope._reload import load_again
from sinkscope._verify_heads import chosen_heads, chosen_rows
from sinkscope._world import announced
from sinkscope.artifact import (
    EDIT_COLUMNS,
    Artifact,
    open_artifact,
    read_edits,
    verification,
    without_verdicts,
    write_verdicts,
)
from sinkscope.explain import MIN_VERDICT_INPUTS, JudgeOptions, judge
from sinkscope.explain.edits import EditOptions, edit_heads

_WITHOUT_EFFECT = frozenset({"batch_size", "device", "heads"})  # heads are noted one by one
_NO_EDITS = pd.DataFrame({name: [] for name in (*(column.name for column in EDIT_COLUMNS), "donor_cosine")})
_LEAST = {"inputs": MIN_VERDICT_INPUTS, "donors": 1, "batch_size": 4, "seed": 0}


@dataclass(frozen=True)
class VerifyOptions:
    """What the verdicts of a diagnosis depend on, beside its model and inputs.

    - `heads`: `auto` for those with a sink, `all`, or a list such as `0.2,3.11` (layer.head).
    - `inputs`: most inputs per head: the first on which its sink has mass >= 0.3.
    - `donors`: draws of the edits `donor` and `ordinary` per input.
    - `freeze_all`: later layers keep their attention too, so that only what flows through values counts.
    - `seed`: of donors, controls and bootstrap intervals.
    - `batch_size`: most rows in one edited forward pass; a row is one input under one edit of one head.
    - `device`: where the model runs. No verdict depends on this and the batch size.
    """

    heads: str = "auto"
    inputs: int = 64
    donors: int = 2
    freeze_all: bool = False
    seed: int = 0
    batch_size: int = 128
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value, flag = getattr(self, name), "--" + name.replace("_", "-")
            if not isinstance(value, int) or value < least:
                reason = ", the fewest that make an interval" if name == "inputs" else ""
                raise OptionError(f"{flag} is {value!r}", f"a whole number from {least} on{reason}", f"correct {flag}")


def verify(
    artifact: Artifact,
    options: VerifyOptions,
    *,
    again: bool = False,
    model: Any = None,
    data: Any = None,
    trust_remote_code: bool = False,
    on_part: Callable[[int, int], None] | None = None,
    command: str | None = None,
) -> Artifact:
    """Edit heads of a diagnosis, judge them, and write what was found into its folder; goes on where it stopped.

    Heads that were edited before, with the same options, are judged with them.

    **Returns:** the artifact, read anew. **Raises:** as `Diagnosis.verify`.
    """
    if announced().size > 1:
        raise OptionError(
            f"verify in {announced().size} processes", "one process", "run it without torchrun; --device picks a GPU"
        )
    if artifact.manifest["n_inputs"] < MIN_VERDICT_INPUTS:
        raise InputError(
            f"{artifact.path} has {artifact.manifest['n_inputs']} inputs",
            f"at least {MIN_VERDICT_INPUTS}, the fewest that make an interval",
            "diagnose more inputs, into another folder",
        )
    heads = without_verdicts(artifact.heads)
    wanted = {f"{layer}.{head}": (layer, head) for layer, head in chosen_heads(options.heads, heads, artifact)}
    with verification(
        artifact.path / "edits",
        artifact.manifest["model"]["weights_sha256"],
        list(wanted),
        {name: value for name, value in asdict(options).items() if name not in _WITHOUT_EFFECT},
        command or _call(artifact, options),
        again=again,
    ) as left:
        chosen = chosen_rows(artifact, [wanted[name] for name in left.heads], options.inputs)
        if len(chosen):
            loaded, supply = load_again(
                artifact, model=model, data=data, device=options.device, trust_remote_code=trust_remote_code
            )
            edit_heads(loaded, supply, chosen, artifact.path, _edit_options(options, left.number), on_part)
    edits = read_edits(artifact.path) if any((artifact.path / "edits").glob("part-*")) else _NO_EDITS
    verdicts = judge(edits, heads, JudgeOptions(seed=options.seed))
    write_verdicts(artifact.path, heads, verdicts.heads, verdicts.effects)
    return open_artifact(artifact.path)


def _call(artifact: Artifact, options: VerifyOptions) -> str:
    given = ", ".join(f"{name}={value!r}" for name, value in asdict(options).items())
    return f"sinkscope.open({str(artifact.path)!r}).verify({given})"


def _edit_options(options: VerifyOptions, number: int) -> EditOptions:
    return EditOptions(
        options.donors, seed=options.seed, freeze_all=options.freeze_all, rows=options.batch_size, number=number
    )
