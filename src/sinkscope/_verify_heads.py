"""Which heads are edited, on which inputs."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from sinkscope._errors import CaptureError, OptionError
from sinkscope.artifact import SINK_MASS, Artifact
from sinkscope.explain import has_sink

Head = tuple[int, int]
_HEAD = re.compile(r"^(\d+)\.(\d+)$")
_SHOWN = 12


def chosen_heads(text: str, heads: pd.DataFrame, artifact: Artifact) -> list[Head]:
    """The heads that `text` names (`auto`, `all`, or `layer.head` with commas between), sorted.

    **Raises:** `OptionError` when `text` is none of these or names a head that does not exist; `CaptureError` when it
    names a layer that the diagnosis could not measure.
    """
    if text in ("auto", "all"):
        rows = heads if text == "all" else heads[has_sink(heads)]
        return sorted((int(layer), int(head)) for layer, head in zip(rows["layer"], rows["head"], strict=True))
    named = [_HEAD.match(part.strip()) for part in text.split(",")]
    if not all(named):
        raise OptionError(
            f"--heads is {text!r}", "auto, all, or heads as layer.head with commas between", "use --heads 0.2,3.11"
        )
    wanted = sorted({(int(match[1]), int(match[2])) for match in named if match})
    for head in wanted:
        _require(head, heads, artifact)
    return wanted


def _require(wanted: Head, heads: pd.DataFrame, artifact: Artifact) -> None:
    layer, head = wanted
    there = heads.loc[heads["layer"] == layer, "head"]
    if head in set(there):
        return
    layers = sorted(set(heads["layer"]))
    gaps = artifact.manifest["coverage"]["gaps"]
    if len(there):
        raise OptionError(
            f"there is no head {layer}.{head}", f"a head from {layer}.0 to {layer}.{there.max()}", "correct --heads"
        )
    if gaps:
        reasons = [f"{gap['module']}: {gap['reason']}" for gap in gaps]
        named = "; ".join(reasons[:_SHOWN]) + (f"; and {len(reasons) - _SHOWN} more" if reasons[_SHOWN:] else "")
        raise CaptureError(
            f"layer {layer} of head {layer}.{head} was not measured (not measured are {named})",
            f"a head of a measured layer: {_ranges(layers)}",
            "correct --heads; only what is captured can be edited",
        )
    raise OptionError(f"there is no layer {layer}", f"a layer among {_ranges(layers)}", "correct --heads")


def _ranges(numbers: Sequence[int]) -> str:
    if list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def chosen_rows(artifact: Artifact, heads: Sequence[Head], inputs: int) -> pd.DataFrame:
    """The rows to edit, in the order of the inputs: of each head the first `inputs` on which it has a sink, that is
    mass >= SINK_MASS; of a head without a sink the first on which there is a candidate at all, whatever its mass.

    **Returns:** `input, layer, head, sink, mass`.
    """
    table = artifact.heads[["layer", "head"]].assign(has_sink=has_sink(artifact.heads))
    wanted = table[pd.MultiIndex.from_frame(table[["layer", "head"]]).isin(list(heads))]
    events = artifact.events(["input", "layer", "head", "sink", "mass"])
    rows = events.reset_index().merge(wanted, on=["layer", "head"]).sort_values("index")
    rows = rows[rows["sink"].notna() & ((rows["mass"] >= SINK_MASS) | ~rows["has_sink"])]
    first = rows.groupby(["layer", "head"]).head(inputs)
    return first[["input", "layer", "head", "sink", "mass"]].reset_index(drop=True)
