"""Does a verdict hang on depth, mass or value norm? Planted heads that are alike in these, and differ in mechanism."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pandas as pd

from sinkscope.explain import wilson

WORDS = ("nop", "broadcast", "bias", "inert")
MASS, NORM = 0.1, 1.25
"""Largest difference of masses, largest ratio of norms."""

Alike = Callable[[pd.Series, pd.Series], bool]


def _mass(a: pd.Series, b: pd.Series) -> bool:
    return bool(abs(a["mass"] - b["mass"]) <= MASS)


def _norm(a: pd.Series, b: pd.Series) -> bool:
    return bool(max(a["norm"], b["norm"]) <= NORM * min(a["norm"], b["norm"]))


MATCHES: dict[str, Alike] = {
    "depth": lambda a, b: True,
    "depth, mass": _mass,
    "depth, norm": _norm,
    "depth, mass, norm": lambda a, b: _mass(a, b) and _norm(a, b),
}


def matched(rows: pd.DataFrame) -> list[str]:
    """The section of the findings: how often both words of a pair are right, and who tells the two apart."""
    heads = rows[rows["truth"].isin(WORDS)].copy()
    heads["norm"] = np.sqrt(heads[["shares_constant", "shares_content"]].astype(float).sum(axis=1).clip(lower=0))
    lines = [
        "",
        "##### Pairs of different mechanisms, matched",
        "",
        f"Both of a model and a layer; masses differ by at most {MASS}, norms of what the sinks write by at most a "
        f"factor of {NORM}. Every head is in one pair at most.",
        "",
        "| matched on | pairs | both words right | the words tell them apart | `fesser` tells them apart |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, alike in MATCHES.items():
        found = pairs(heads, alike)
        right = sum(a["said"] == a["truth"] and b["said"] == b["truth"] for a, b in found)
        apart = sum(a["said"] != b["said"] and "undecided" not in (a["said"], b["said"]) for a, b in found)
        rule = sum(a["fesser"] != b["fesser"] for a, b in found)
        cells = [rate(hits, len(found)) for hits in (right, apart, rule)]
        lines.append(f"| {name} | {len(found)} | {' | '.join(cells)} |")
    return lines


def pairs(heads: pd.DataFrame, alike: Alike) -> list[tuple[pd.Series, pd.Series]]:
    """Pairs of different truth, the nearest in mass and norm first, each head once."""
    near = []
    for _, group in heads.groupby(["model", "layer"]):
        for (_, a), (_, b) in combinations(group.iterrows(), 2):
            if a["truth"] != b["truth"] and alike(a, b):
                apart = abs(a["mass"] - b["mass"]) + abs(a["norm"] - b["norm"])
                near.append((float(apart), a, b))
    used: set[object] = set()
    found = []
    for _, a, b in sorted(near, key=lambda pair: pair[0]):
        if not used & {a.name, b.name}:
            used |= {a.name, b.name}
            found.append((a, b))
    return found


def rate(hits: int, of: int) -> str:
    """A share with Wilson's 95% interval."""
    if not of:
        return "none"
    low, high = wilson(np.array([hits]), np.array([of]))
    return f"{hits / of:.3f} [{low[0]:.3f}, {high[0]:.3f}] ({hits}/{of})"
