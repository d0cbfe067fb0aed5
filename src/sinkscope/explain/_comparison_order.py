"""The numbers of a comparison in the order in which they are read, with what they are called."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

COMPARED_MEASURES: Mapping[tuple[str, str], tuple[str, str]] = {
    ("sinks", "sink_heads"): ("sink heads", "heads with mass ≥ 0.3 on one token for 10% of the inputs or more"),
    ("sinks", "sink_rate"): ("rows with a sink", "share of rows (one per input and head) with mass ≥ 0.3"),
    ("sinks", "event_rate"): ("rows with an event", "share of rows that are an event under the rule"),
    ("sinks", "mass"): ("mass of the sink", "mean over rows of the attention that the sink receives"),
    ("sinks", "virtual_mass"): ("virtual mass", "mean over rows of what learned or virtual sinks take"),
    ("roles", "first token"): ("sink is the first token", "share of the rows with a sink"),
    ("classes", "nop"): ("events like a nop", "share of rows"),
    ("classes", "broadcast"): ("events like a broadcast", "share of rows"),
    ("classes", "other"): ("events like neither", "share of rows"),
    ("verdicts", "nop"): ("verdict nop", "heads"),
    ("verdicts", "broadcast"): ("verdict broadcast", "heads"),
    ("verdicts", "bias"): ("verdict bias", "heads"),
    ("verdicts", "inert"): ("verdict inert", "heads"),
    ("verdicts", "undecided"): ("undecided", "heads"),
    ("verdicts", "not edited"): ("sink heads not edited", "heads"),
    ("writes", "silent"): ("silent", "median over sink heads, energy of an ordinary token = 1: what is missing to it"),
    ("writes", "constant"): ("constant", "median over sink heads: the same vector on every input"),
    ("writes", "content"): ("content", "median over sink heads: what differs from input to input"),
    ("writes", "content_share"): ("share of content", "median over sink heads of content over energy"),
    ("norms", "value_ratio"): ("value of the sink", "norm over that of other tokens, where there is a sink"),
    ("norms", "update_ratio"): ("write of the sink", "norm over that of other tokens, where there is a sink"),
    ("norms", "hidden_ratio"): ("hidden state of the sink", "norm over the median token's, where there is a sink"),
    ("kinds", "uniform"): ("uniform heads", "heads"),
    ("kinds", "diagonal"): ("diagonal heads", "heads"),
    ("kinds", "dead"): ("dead heads", "heads"),
    ("kinds", "none"): ("heads of no kind", "heads"),
    ("outliers", "largest"): ("largest activation", "residual stream, largest of all layers"),
    ("outliers", "ratio"): ("largest over median", "residual stream, largest of all layers"),
    ("outliers", "kurtosis"): ("kurtosis", "residual stream, over tokens and channels, largest of all layers"),
    ("outliers", "channel_kurtosis"): ("kurtosis of channels", "residual stream, largest of all layers"),
    ("outliers", "largest_added"): ("largest activation of added tokens", "largest of all layers"),
    ("outputs", "final_change"): ("change of final tokens", "relative root mean square"),
    ("outputs", "final_cosine"): ("cosine of final tokens", "mean over tokens"),
    ("outputs", "output_kl"): ("KL divergence of outputs", "nats"),
    ("outputs", "output_top1"): ("same first choice", "share of positions"),
    ("outputs", "loss"): ("loss", "next token, nats"),
    ("outputs", "accuracy"): ("accuracy", "share of inputs"),
}
"""Name and meaning; roles of sinks stand behind the first token, under their own names."""

GROUPS: Mapping[str, str] = {
    "sinks": "Sinks",
    "roles": "Where sinks are",
    "verdicts": "Verdicts",
    "classes": "Classes under the rule",
    "writes": "What sinks write",
    "norms": "Norms",
    "kinds": "Other heads",
    "outliers": "Outliers",
    "outputs": "Outputs",
}


@dataclass(frozen=True)
class Line:
    """One measure of all models.

    - `cells`: per model its row of the table of measures; None where it has none.
    """

    group: str
    label: str
    meaning: str
    unit: str
    cells: tuple[Mapping[str, Any] | None, ...]


def side_by_side(measures: pd.DataFrame, models: int) -> list[Line]:
    """The numbers of whole models, group by group. Outliers are told of the layer where they are largest; there is no
    change where that is another one in the base. Measures that are 0 or unknown everywhere are left out, but those of
    outputs."""
    whole = measures[measures["layer"].isna()]
    layered = measures[measures["layer"].notna() & (measures["group"] == "outliers")]
    peaks = layered.dropna(subset=["value"]).sort_values("value", ascending=False, kind="stable")
    table = pd.concat([whole, peaks.drop_duplicates(["model", "group", "measure"])])
    found: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for row in table.to_dict("records"):
        found.setdefault((row["group"], row["measure"]), {})[row["model"]] = {str(k): v for k, v in row.items()}
    order = {key: place for place, key in enumerate(COMPARED_MEASURES)}
    groups = list(GROUPS)
    lines = []
    for key in sorted(found, key=lambda key: (groups.index(key[0]), order.get(key, len(order)), key[1])):
        cells = tuple(_at_peak(found[key].get(number), found[key].get(0)) for number in range(models))
        values = [cell["value"] for cell in cells if cell is not None and cell["value"] == cell["value"]]
        if key == ("kinds", "sink") or (key[0] != "outputs" and not any(values)):
            continue
        label, meaning = COMPARED_MEASURES.get(key, (f"sink is {key[1]}", "share of the rows with a sink"))
        unit = next(cell["unit"] for cell in cells if cell is not None)
        lines.append(Line(key[0], label, meaning, unit, cells))
    return lines


def _at_peak(cell: Mapping[str, Any] | None, base: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if cell is None or pd.isna(cell["layer"]) or (base is not None and cell["layer"] == base["layer"]):
        return cell
    return {**cell, "change": math.nan, "change_low": math.nan, "change_high": math.nan}
