"""Effects of edits: from one row per edit to means over inputs with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..artifact import EDITS
from ._resamples import intervals, weighted_means

RMS_MEASURES = ("write", "final", "final_norm")
"""Relative root-mean-square changes: over draws and inputs their squares are averaged, and the root taken."""

MEASURES = (*RMS_MEASURES, "common", "donor_cosine", "output_kl", "output_top1", "output_loss")

LEAST_BUDGET = 0.001
"""A control whose keys have less than this share of the sink's mass says nothing about the full budget."""


@dataclass(frozen=True)
class HeadEffects:
    """What the edits of one head did, per input.

    - `inputs`: names of the inputs, sorted.
    - `means`: mean over draws per input of each edit and measure, squares for RMS_MEASURES; NaN where not measured.
      The edit `full_control` is the control scaled to the sink's full mass: its squares are divided by budget^2,
      without the draws under LEAST_BUDGET.
    """

    layer: int
    head: int
    inputs: tuple[str, ...]
    means: Mapping[tuple[str, str], Float[np.ndarray, " inputs"]]

    def __getitem__(self, key: tuple[str, str]) -> Float[np.ndarray, " inputs"]:
        """Of an edit and a measure; all NaN when there was no such edit."""
        return self.means.get(key, np.full(len(self.inputs), np.nan))

    def knows(self, measure: str) -> bool:
        """Whether the zero edit has this measure on some input."""
        return not bool(np.isnan(self["zero", measure]).all())

    @property
    def final_measure(self) -> str:
        """`final_norm` where the model has a last norm, else `final`."""
        return "final_norm" if self.knows("final_norm") else "final"


def head_effects(edits: pd.DataFrame) -> Iterator[HeadEffects]:
    """Every edited head in order, with its effects per input.

    **Arguments:**

    - `edits`: rows as `read_edits` gives them.
    """
    rows = edits.loc[:, ["layer", "head", "input", "edit", *MEASURES]].astype(dict.fromkeys(MEASURES, "float64"))
    rows[list(RMS_MEASURES)] = rows[list(RMS_MEASURES)] ** 2
    budget = edits["budget"].to_numpy(dtype=np.float64)
    counts = (edits["edit"] == "control").to_numpy() & (budget >= LEAST_BUDGET)
    full = rows[counts].assign(edit="full_control")
    full[list(RMS_MEASURES)] = full[list(RMS_MEASURES)].div(budget[counts] ** 2, axis=0)
    keys = ["layer", "head", "edit", "input"]
    means = pd.concat([rows, full], ignore_index=True).groupby(keys, sort=True, observed=True)[list(MEASURES)].mean()
    for place, of_head in means.groupby(level=["layer", "head"], sort=True):
        layer, head = np.array(place, dtype=np.int64).tolist()
        by_edit = of_head.droplevel(["layer", "head"])
        inputs = tuple(by_edit.index.get_level_values("input").unique().sort_values())
        table = by_edit.unstack("edit").reindex(inputs)
        columns = {tuple(reversed(name)): table[name].to_numpy() for name in table.columns.tolist()}
        yield HeadEffects(layer, head, inputs, columns)


def effect_table(head: HeadEffects, weights: Float[np.ndarray, "rows inputs"]) -> pd.DataFrame:
    """Value and 95% interval over inputs of every edit and measure of one head: columns `layer, head, edit, measure,
    value, low, high, n`, with `n` the number of inputs on which it is known. Intervals as in `intervals`: paired,
    for all edits see the same resamples.

    **Arguments:**

    - `weights`: as `resample_weights` gives them.
    """
    wanted = [(edit, measure) for edit in EDITS for measure in MEASURES if not np.isnan(head[edit, measure]).all()]
    columns = np.stack([head[key] for key in wanted], axis=1)
    known = np.count_nonzero(~np.isnan(columns), axis=0)
    n = len(head.inputs)
    statistics = weighted_means(weights, columns)
    is_rms = np.array([measure in RMS_MEASURES for _, measure in wanted])
    statistics[:, is_rms] = np.sqrt(statistics[:, is_rms])
    low, high = intervals(statistics, n, known)
    return pd.DataFrame(
        {
            "layer": np.int32(head.layer),
            "head": np.int32(head.head),
            "edit": [edit for edit, _ in wanted],
            "measure": [measure for _, measure in wanted],
            "value": statistics[0],
            "low": low,
            "high": high,
            "n": known,
        }
    )
