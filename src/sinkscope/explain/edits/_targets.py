"""Which heads are edited on which inputs."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sinkscope._errors import InputError, OptionError
from sinkscope.artifact import EDITS

CHOSEN = ("input", "layer", "head", "sink", "mass")


@dataclass(frozen=True)
class Target:
    """One head on one input, with its sink there and the sink's mass."""

    input: str
    layer: int
    head: int
    sink: int
    mass: float

    def generator(self, seed: int, edit: str) -> np.random.Generator:
        """For the random choices of an edit of this head on this input, whatever else is edited."""
        return np.random.default_rng(
            [seed, self.layer, self.head, zlib.crc32(self.input.encode()), EDITS.index(edit)],
        )


def targets_by_input(chosen: pd.DataFrame) -> Mapping[str, list[Target]]:
    """The rows of `chosen` by input, each sorted by layer and head.

    **Raises:** `OptionError` when columns are missing or a value is null; `InputError` for a head that has two rows on
    one input, whose name then stands for two inputs.
    """
    missing = [name for name in CHOSEN if name not in chosen.columns]
    if missing or chosen[list(CHOSEN)].isna().any(axis=None):
        found = f"lacks {', '.join(missing)}" if missing else "has nulls"
        raise OptionError(f"the table of chosen rows {found}", ", ".join(CHOSEN), "take the rows of the events")
    again = chosen[chosen.duplicated(["input", "layer", "head"])]
    if len(again):
        raise InputError(
            f"two rows for head {again['head'].iloc[0]} of layer {again['layer'].iloc[0]} on {again['input'].iloc[0]}",
            "one name per input",
            "give the inputs names of their own, and diagnose them again",
        )
    by_input: defaultdict[str, list[Target]] = defaultdict(list)
    columns = (chosen.sort_values(["layer", "head"])[name].tolist() for name in CHOSEN)
    for name, layer, head, sink, mass in zip(*columns, strict=True):
        target = Target(str(name), int(layer), int(head), int(sink), float(mass))
        by_input[target.input].append(target)
    return by_input
