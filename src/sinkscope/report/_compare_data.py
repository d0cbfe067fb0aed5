"""What page and figures need of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sinkscope.artifact import ComparisonTables, read_comparison
from sinkscope.report._style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERDICT_COLOURS, VERDICT_LETTERS, VERMILLION

STATE_COLOURS: Mapping[str, str] = {
    **{word: colour for word, colour in VERDICT_COLOURS.items() if word != "no sink"},
    "sink": PURPLE,
    "none": "#edf0f3",
    "uniform": "#d5dbe1",
    "diagonal": "#bcc5ce",
    "dead": "#5f6873",
}
"""What a head can be, in the order of tables and legends."""
STATE_LETTERS: Mapping[str, str] = {
    **{word: letter for word, letter in VERDICT_LETTERS.items() if word != "no sink"},
    "sink": "S",
    "none": "",
    "uniform": "u",
    "diagonal": "d",
    "dead": "x",
}

_COLOURS = ("#3f464e", VERMILLION, BLUE, GREEN, PURPLE, ORANGE, SKY)


@dataclass(frozen=True)
class CompareData:
    """A comparison.

    - `tables`: the content of its folder.
    """

    tables: ComparisonTables

    @property
    def models(self) -> Sequence[Mapping[str, Any]]:
        models: Sequence[Mapping[str, Any]] = self.tables.facts["models"]
        return models

    @property
    def matched(self) -> list[int]:
        """Numbers of the diagnoses that are compared head by head."""
        return [int(number) for number in sorted(self.tables.heads["model"].unique())]

    def letter(self, model: int) -> str:
        return str(self.models[model]["letter"])

    def colour(self, model: int) -> str:
        return _COLOURS[model % len(_COLOURS)]

    def heads(self, model: int) -> pd.DataFrame:
        """Head by head rows of one diagnosis."""
        table = self.tables.heads
        return table[table["model"] == model].reset_index(drop=True)

    def state_names(self, model: int) -> dict[str, str]:
        """What page and legends call the states of heads."""
        heads = self.heads(model)
        judged = heads[["before", "after"]].isin(list(VERDICT_COLOURS)).any(axis=None)
        named = {"none": "no sink", "sink": "sink, not edited" if judged else "sink"}
        return {word: named.get(word, word) for word in STATE_COLOURS}

    def layers(self, group: str, measure: str) -> dict[int, pd.DataFrame]:
        """Per model the known values of a measure that has layers."""
        table = self.tables.measures
        chosen = table[(table["group"] == group) & (table["measure"] == measure) & table["layer"].notna()]
        known = chosen.dropna(subset=["value"])
        return {model: known[known["model"] == model].sort_values("layer") for model in sorted(set(known["model"]))}


def read_compared(folder: Path) -> CompareData:
    """**Raises:** `ArtifactError` where the folder holds no comparison."""
    return CompareData(read_comparison(folder))
