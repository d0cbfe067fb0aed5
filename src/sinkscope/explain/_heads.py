"""From event rows to one row per head."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from ..artifact import MEDIAN_COLUMNS, SINK_MASS, Artifact, head_columns
from ._classify import classify, is_event
from ._intervals import median_interval, wilson
from ._kinds import dead_heads, kinds
from ._rules import Rule
from ._shares import sink_shares

_CLASSES = ("nop", "broadcast", "other")


def build_heads(artifact: Artifact, rule: Rule, seed: int = 0) -> pd.DataFrame:
    """The table of heads, with exactly the columns of `head_columns()`, sorted by layer and head.

    - Rates have Wilson intervals, medians exact percentile bootstrap intervals, shares resampled ones.
    - `event_rate` is over the inputs on which the rule can decide, null where there are none.
    - `role` is the most frequent role of the sink over all inputs, the first in the alphabet among equals.
    - `nop`, `broadcast`, `other` count events; null when the head has events and the rule cannot tell the class of
      any. Events of unknown class are in no count.
    - `kind`: see `kinds`, whose thresholds are this module's constants.

    **Arguments:**

    - `artifact`: finished; its `heads.parquet` is not looked at.
    - `rule`: what an event is, and its class.
    - `seed`: of the bootstrap of the shares.

    **Raises:** `ArtifactError` when a file of the artifact is missing or damaged.
    """
    columns = dict.fromkeys(("layer", "head", "sink", "role", *MEDIAN_COLUMNS, *rule.columns))
    events = artifact.events(list(columns))
    width = events["head"].max() + 1
    codes, of_head, n_inputs = np.unique(
        events["layer"].to_numpy(np.int64) * width + events["head"].to_numpy(), return_inverse=True, return_counts=True
    )
    layer, head = np.divmod(codes, width)

    table: dict[str, object] = {"layer": layer, "head": head, "n_inputs": n_inputs}
    table |= _event_columns(events, rule, of_head, len(codes))
    mass = events["mass"].to_numpy()
    n_sinks = _count(mass >= mass.dtype.type(SINK_MASS), of_head, len(codes))
    table |= _rate("sink_rate", n_sinks, n_inputs)
    table |= _role_columns(events["role"], of_head, n_inputs)
    grid = _grid(of_head, n_inputs)
    for name in MEDIAN_COLUMNS:
        values = np.where(grid >= 0, events[name].to_numpy(dtype=np.float64)[grid], np.nan)
        median, low, high = median_interval(values)
        table |= {f"{name}_median": median, f"{name}_median_low": low, f"{name}_median_high": high}
    table["kind"] = kinds(
        dead_heads(artifact.vectors["energy"], layer, head),
        n_sinks / n_inputs,
        np.asarray(table["entropy_share_median"]),
        np.asarray(table["diagonal_median"]),
    )
    shares = sink_shares(artifact.vectors, seed).reindex(pd.MultiIndex.from_arrays([layer, head]))
    table |= {name: shares[name].to_numpy() for name in shares.columns}
    wanted = [column.name for column in head_columns()]
    return pd.DataFrame(table)[wanted].astype({"layer": "int32", "head": "int32"})


def _event_columns(
    events: pd.DataFrame, rule: Rule, of_head: Int[np.ndarray, " rows"], n_heads: int
) -> dict[str, object]:
    """`event_rate` and the counts of events by class."""
    event, classes = is_event(events, rule), classify(events, rule)
    happens = event.to_numpy(dtype=bool, na_value=False)
    n_events = _count(happens, of_head, n_heads)
    n_decided = _count(event.notna().to_numpy(), of_head, n_heads)
    counts = {name: _count((classes == name).to_numpy(), of_head, n_heads) for name in _CLASSES}
    told = (n_decided > 0) & ((n_events == 0) | (sum(counts.values()) > 0))
    by_class = {name: pd.Series(count, dtype="Int64").where(told) for name, count in counts.items()}
    return {**_rate("event_rate", n_events, n_decided), **by_class}


def _count(
    holds: Bool[np.ndarray, " rows"], of_head: Int[np.ndarray, " rows"], n_heads: int
) -> Int[np.ndarray, " heads"]:
    return np.bincount(of_head[holds], minlength=n_heads)


def _rate(name: str, successes: Int[np.ndarray, " heads"], trials: Int[np.ndarray, " heads"]) -> dict[str, np.ndarray]:
    with np.errstate(invalid="ignore"):
        rate = successes / trials
    low, high = wilson(successes, trials)
    return {name: rate, f"{name}_low": low, f"{name}_high": high}


def _role_columns(
    roles: pd.Series, of_head: Int[np.ndarray, " rows"], n_inputs: Int[np.ndarray, " heads"]
) -> dict[str, object]:
    codes, names = pd.factorize(roles, sort=True)
    known = codes >= 0
    counts = np.zeros((len(n_inputs), max(len(names), 1)), dtype=np.int64)
    np.add.at(counts, (of_head[known], codes[known]), 1)
    most, often = counts.argmax(axis=1), counts.max(axis=1)
    role = [names[place] if count else None for place, count in zip(most, often, strict=True)]
    return {"role": pd.Series(role, dtype=roles.dtype), "role_share": np.where(often > 0, often / n_inputs, np.nan)}


def _grid(of_head: Int[np.ndarray, " rows"], n_inputs: Int[np.ndarray, " heads"]) -> Int[np.ndarray, "heads inputs"]:
    """Row numbers of every head's events, -1 where a head has fewer than the others."""
    order = np.argsort(of_head, kind="stable")
    starts = np.cumsum(n_inputs) - n_inputs
    grid = np.full((len(n_inputs), n_inputs.max()), -1)
    grid[of_head[order], np.arange(len(order)) - starts[of_head[order]]] = order
    return grid
