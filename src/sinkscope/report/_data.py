"""What the figures need of an artifact, reduced from millions of event rows to a few tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from sinkscope.artifact import SINK_MASS, Artifact
from sinkscope.explain import Rule, classify, is_event
from sinkscope.report._rule import ratio_column
from sinkscope.report._verified import Verified, read_verified

_COLUMNS = (
    "input", "layer", "head", "sink", "role", "mass", "value_ratio", "update_ratio", "stable_rank",
    "hidden_norm", "hidden_norm_median",
)  # fmt: skip


@dataclass(frozen=True)
class ReportData:
    """The tables behind the figures.

    - `rows`, `sinks`, `events`: rows measured, rows with mass >= 0.3, rows that are an event under the rule.
    - `roles`: per layer `rows`, `events`, and one column of sink rows per role that occurs ("unknown" without one).
    - `ratio`: the norm ratio the rule's classes look at.
    - `scatter`: `ratio`, `rank`, `label` of every event (label: its class), or, without any event, of every sink row
      (label: "sink"); rows where either is null are left out and counted in `unplaced`.
    - `norms`: per layer the quartiles `sink_25` .. `sink_75` over sink rows and `other_25` .. `other_75` over inputs,
      and their numbers `sink_n` and `other_n`.
    - `gallery_rows`: `input, layer, head, sink, mass, event` of the inputs in the gallery.
    - `mass_se`: median standard error of `mass`, None unless queries were sampled.
    - `verified`: verdicts and their evidence, None unless heads were edited.
    """

    artifact: Artifact
    rule: Rule
    heads: pd.DataFrame
    rows: int
    sinks: int
    events: int
    roles: pd.DataFrame
    ratio: str
    scatter: pd.DataFrame
    unplaced: int
    norms: pd.DataFrame
    gallery_rows: pd.DataFrame
    mass_se: float | None
    verified: Verified | None

    @property
    def manifest(self) -> dict[str, Any]:
        return self.artifact.manifest


def read_data(artifact: Artifact) -> ReportData:
    """Reduces the events of `artifact`; holds only the columns it needs, each once.

    **Raises:** `ArtifactError` where the folder is damaged, `OptionError` where its rule cannot be read.
    """
    rule = Rule.from_dict(artifact.manifest["rule"])
    sampled = artifact.manifest["options"].get("queries", "all") != "all"
    rows = artifact.events(list(dict.fromkeys((*_COLUMNS, *rule.columns, *(["mass_se"] if sampled else [])))))
    rows["event"] = is_event(rows, rule).fillna(False).astype(bool)
    rows["sinks"] = (rows["mass"] >= SINK_MASS) & rows["sink"].notna()
    shown = rows[rows["event"] if rows["event"].any() else rows["sinks"]]
    ratio = ratio_column(rule)
    scatter = pd.DataFrame({"ratio": shown[ratio], "rank": shown["stable_rank"], "label": "sink"})
    if rows["event"].any():
        scatter["label"] = classify(rows, rule)[rows["event"]]
    placed = scatter.dropna(subset=["ratio", "rank"])
    in_gallery = rows["input"].isin([item.input for item in artifact.gallery])
    return ReportData(
        artifact=artifact,
        rule=rule,
        heads=artifact.heads.sort_values(["layer", "head"], ignore_index=True),
        rows=len(rows),
        sinks=int(rows["sinks"].sum()),
        events=int(rows["event"].sum()),
        roles=_roles(rows),
        ratio=ratio,
        scatter=placed,
        unplaced=len(scatter) - len(placed),
        norms=_norms(rows),
        gallery_rows=rows.loc[in_gallery, ["input", "layer", "head", "sink", "mass", "event"]],
        mass_se=float(rows["mass_se"].median()) if sampled else None,
        verified=read_verified(artifact),
    )


def _roles(rows: pd.DataFrame) -> pd.DataFrame:
    by_layer = rows.groupby("layer")
    table = pd.DataFrame({"rows": by_layer.size(), "events": by_layer["event"].sum()})
    sinks = rows.loc[rows["sinks"], ["layer", "role"]].fillna({"role": "unknown"})
    counts = sinks.groupby(["layer", "role"]).size().unstack(fill_value=0)
    return table.join(counts.astype(int)).fillna(0).astype(int)


def _norms(rows: pd.DataFrame) -> pd.DataFrame:
    # The median over tokens is the same for all heads of a layer: one head per layer stands for the input.
    first = rows.groupby("layer")["head"].transform("min") == rows["head"]
    parts = []
    for group, values in (
        ("sink", rows[rows["sinks"]].groupby("layer")["hidden_norm"]),
        ("other", rows[first].groupby("layer")["hidden_norm_median"]),
    ):
        parts += [values.quantile(share / 100).rename(f"{group}_{share}") for share in (25, 50, 75)]
        parts.append(values.count().rename(f"{group}_n"))
    layers = pd.Index(sorted(rows["layer"].unique()), name="layer")
    return pd.concat(parts, axis=1).reindex(layers).fillna({"sink_n": 0, "other_n": 0})
