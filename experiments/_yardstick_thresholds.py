"""How much do words hang on thresholds? The heads of the part to fit on, judged again under others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from sinkscope.artifact import open_artifact, read_edits, without_verdicts
from sinkscope.explain import JudgeOptions, Thresholds, judge

FACTORS = (0.5, 0.7, 0.85, 1.0, 1.2, 1.4, 2.0)
VARIED = ("nop_strength", "writing_strength", "broadcast_share", "control_ratio", "inert_effect")
SINKS = ("nop", "broadcast", "bias", "inert")
RESAMPLES = 500


def settings() -> Mapping[tuple[str, float], Thresholds]:
    """One threshold at a time; those that would contradict another are left out."""
    now = Thresholds()
    found: dict[tuple[str, float], Thresholds] = {}
    for name in VARIED:
        for factor in FACTORS:
            value = factor * getattr(now, name)
            if name == "nop_strength" and value > now.writing_strength:
                continue
            if name == "writing_strength" and value < now.nop_strength:
                continue
            if name == "broadcast_share" and value >= 1:
                continue
            found[name, factor] = replace(now, **{name: value})
    return found


def judged(folders: Iterable[Path], truth: str) -> pd.DataFrame:
    """One row per threshold, factor, word that is true and word that is said: how many faithful sink heads."""
    rows = []
    for folder in folders:
        planted = json.loads((folder / truth).read_text(encoding="utf-8"))["planted"]
        true = {(t["layer"], t["head"]): t["mechanism"] for t in planted if t["faithful"] and t["mechanism"] in SINKS}
        if not (folder / "edits").is_dir():
            continue
        heads, edits = without_verdicts(open_artifact(folder).heads), read_edits(folder)
        for (name, factor), thresholds in settings().items():
            words = judge(edits, heads, JudgeOptions(thresholds, resamples=RESAMPLES)).heads
            for place, said in zip(zip(words["layer"], words["head"], strict=True), words["verdict"], strict=True):
                if place in true and said != "no sink":
                    rows.append({"threshold": name, "factor": factor, "truth": true[place], "said": said})
    found = pd.DataFrame(rows)
    return found.groupby(list(found.columns), as_index=False).size().rename(columns={"size": "heads"})


def section(found: pd.DataFrame) -> list[str]:
    """Right, undecided and wrong by threshold and factor."""
    now: dict[str, Any] = {name: getattr(Thresholds(), name) for name in VARIED}
    lines = [
        "",
        "#### Other thresholds, on even layers",
        "",
        "Each threshold times a factor, the others as they are: how many heads get the right word, how many "
        "`undecided`, how many a wrong one.",
        "",
        f"| threshold | {' | '.join(f'× {factor:g}' for factor in FACTORS)} |",
        f"| --- |{' --- |' * len(FACTORS)}",
    ]
    for name in VARIED:
        own = found[found["threshold"] == name]
        cells = [_counts(own[own["factor"] == factor]) for factor in FACTORS]
        lines.append(f"| `{name}` = {now[name]:g} | {' | '.join(cells)} |")
    return lines


def _counts(rows: pd.DataFrame) -> str:
    if not len(rows):
        return "–"
    right = int(rows.loc[rows["said"] == rows["truth"], "heads"].sum())
    undecided = int(rows.loc[rows["said"] == "undecided", "heads"].sum())
    return f"{right}, {undecided}, {int(rows['heads'].sum()) - right - undecided}"
