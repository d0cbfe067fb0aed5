"""Diagnoses head by head: what each head is before and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..artifact import COMPARED_HEAD_COLUMNS, COMPARED_RATES, Artifact
from ._comparison import Rows
from ._contrast import PerInput, contrast, estimate
from ._words import WORDS

STATES = (
    "nop", "broadcast", "bias", "inert", "undecided", "sink", "none", "uniform", "diagonal", "dead",
)  # fmt: skip
"""What a head can be called in a comparison, in the order of tables and figures."""


def states(artifact: Artifact, *, verdicts: bool = True) -> pd.Series:
    """What each head is, by layer and head: its verdict, if `verdicts`; `sink` for a sink head without one; else its
    kind."""
    heads = artifact.heads.set_index(["layer", "head"]).sort_index()
    found = heads["kind"].astype(object)
    if verdicts and "verdict" in heads:
        judged = heads["verdict"].notna() & (heads["verdict"] != "no sink")
        found = found.where(~judged, heads["verdict"])
    return found


def same_heads(first: Rows, second: Rows) -> bool:
    """Whether both models have the same layers with the same number of heads."""
    return bool(first.head_index.equals(second.head_index))


def compared_heads(base: Rows, others: Sequence[tuple[int, Rows, bool]], seed: int = 0) -> pd.DataFrame:
    """One row per head and diagnosis that has the heads of the base, with the columns of `COMPARED_HEAD_COLUMNS`.
    Verdicts count where both have some.

    **Arguments:**

    - `others`: number, rows, and whether the inputs are those of the base.
    """
    parts = []
    for number, rows, paired in others:
        if not same_heads(base, rows):
            continue
        layer, head = base.head_index.to_frame().to_numpy().T
        table = pd.DataFrame({"model": number, "layer": layer, "head": head})
        verdicts = all("verdict" in of.artifact.heads for of in (base, rows))
        for name, of in (("before", base), ("after", rows)):
            table[name] = states(of.artifact, verdicts=verdicts).to_numpy()
        for name in COMPARED_RATES:
            column = {"sink_rate": "sunk", "event_rate": "event"}.get(name, name)
            before, after = (PerInput.mean(of.per_head(column)) for of in (base, rows))
            change = contrast(before, after, paired=paired, seed=seed)
            table[f"{name}_before"], table[f"{name}_after"] = estimate(before, seed).value, estimate(after, seed).value
            for end, values in (("", change.value), ("_low", change.low), ("_high", change.high)):
                table[f"{name}_change{end}"] = values
        parts.append(table)
    names = [column.name for column in COMPARED_HEAD_COLUMNS]
    if not parts:
        return pd.DataFrame({name: np.empty(0) for name in names}).astype(_types())
    return pd.concat(parts, ignore_index=True)[names].astype(_types())


def is_changed(heads: pd.DataFrame) -> pd.Series:
    """Which heads are known to be something else: a verdict beside a sink head that was not edited is no change."""
    sink = heads["before"].eq("sink") ^ heads["after"].eq("sink")
    judged = heads["before"].isin(WORDS) | heads["after"].isin(WORDS)
    return heads["before"].ne(heads["after"]) & ~(sink & judged)


def transitions(heads: pd.DataFrame) -> pd.DataFrame:
    """How many heads went from which state to which: columns `model`, `before`, `after`, `heads`, in the order of
    STATES."""
    counts = heads.groupby(["model", "before", "after"], as_index=False).size().rename(columns={"size": "heads"})
    order = {state: place for place, state in enumerate(STATES)}
    ranked = counts.assign(first=counts["before"].map(order), second=counts["after"].map(order))
    return ranked.sort_values(["model", "first", "second"], ignore_index=True)[["model", "before", "after", "heads"]]


def _types() -> dict[str, str]:
    kinds = {"int32": "int32", "string": "object", "float64": "float64"}
    return {column.name: kinds[column.kind] for column in COMPARED_HEAD_COLUMNS}
