"""Diagnoses side by side, from their tables alone: numbers of whole models, and what they differ by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ..artifact import MEASURE_COLUMNS, SHARES, SINK_MASS, Artifact
from ._classify import classify, is_event
from ._contrast import Draws, Estimates, PerInput, contrast, estimate, estimated
from ._kinds import SINK_RATE
from ._rules import Rule
from ._shares import RESAMPLES, share_draws

CLASSES = ("nop", "broadcast", "other")
KINDS = ("sink", "uniform", "diagonal", "dead", "none")
VERDICTS = ("nop", "broadcast", "bias", "inert", "undecided", "not edited")
_NEEDED = (
    "input", "layer", "head", "sink", "role", "mass", "value_ratio", "update_ratio", "hidden_norm",
    "hidden_norm_median", "virtual_mass",
)  # fmt: skip
Key = tuple[str, str, int | None, str]
"""Group, measure, layer and unit of a number."""


@dataclass(frozen=True)
class Rows:
    """The event rows of one diagnosis under the rule of the comparison.

    - `table`: with the columns `event`, `class`, `sunk` (mass >= 0.3) and `code`, the number of the input.
    - `inputs`: names in order.
    """

    artifact: Artifact
    table: pd.DataFrame
    inputs: tuple[str, ...]

    @property
    def head_index(self) -> pd.MultiIndex:
        """Layer and head of every head, sorted."""
        return pd.MultiIndex.from_frame(self.artifact.heads[["layer", "head"]].sort_values(["layer", "head"]))

    def per_head(self, column: str) -> Float[np.ndarray, "inputs heads"]:
        """A column with one row per input and one column per head of `head_index`."""
        grid = self.table.pivot(index="code", columns=["layer", "head"], values=column)
        return grid.reindex(columns=self.head_index).to_numpy(dtype=np.float64, na_value=np.nan)


def read_rows(artifact: Artifact, rule: Rule) -> Rows:
    """The rows of a diagnosis, events and classes under `rule`.

    **Raises:** `ArtifactError` where the folder is damaged.
    """
    table = artifact.events(list(dict.fromkeys((*_NEEDED, *rule.columns))))
    table["event"] = is_event(table, rule)
    table["class"] = classify(table, rule)
    table["sunk"] = (table["mass"] >= SINK_MASS) & table["sink"].notna()
    codes, names = pd.factorize(table["input"])
    return Rows(artifact, table.assign(code=codes), tuple(map(str, names)))


def same_inputs(first: Rows, second: Rows) -> bool:
    """Whether both diagnoses are of the same inputs, wherever these were read from."""
    there, here = (
        {k: v for k, v in rows.artifact.manifest["inputs"].items() if k not in ("location", "ignored_files")}
        for rows in (first, second)
    )
    known = there.get("sha256") is not None or there.get("fingerprint") is not None
    return known and there == here and first.inputs == second.inputs


def measures(rows: Sequence[Rows], paired: Sequence[bool], seed: int = 0) -> pd.DataFrame:
    """Numbers of every diagnosis and their changes against the first, with the columns of `MEASURE_COLUMNS`.

    Rates and means are over inputs and heads. Ratios of norms are medians over the sink rows of an input, then means
    over inputs; shares of what sinks write are medians over the sink heads that have some. Intervals are bootstrap ones
    over inputs; counts of kinds and verdicts have none.

    **Arguments:**

    - `paired`: per diagnosis whether its inputs are those of the first.
    """
    roles = sorted({str(role) for one in rows for role in _roles(one).unique()})
    found = [_per_input(one, roles) for one in rows]
    written = [share_draws(one.artifact.vectors, seed) for one in rows]
    parts = []
    for number, own in enumerate(found):
        with_base = None if number == 0 else (found[0], paired[number])
        parts.append(_compared(number, own, with_base, seed))
        base = None if number == 0 else (rows[0], paired[number])
        parts.append(_sink_heads(number, rows[number], base, seed))
        parts.append(_written(number, rows, written, paired[number]))
        parts.append(_counted(number, rows[number].artifact, None if number == 0 else rows[0].artifact))
    return measure_table(pd.concat(parts, ignore_index=True))


def measure_table(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with exactly the columns and dtypes of `MEASURE_COLUMNS`; columns that are not there are empty."""
    types = {"int32": "Int32", "int64": "Int64", "string": "object", "float64": "float64"}
    return table.reindex(columns=[c.name for c in MEASURE_COLUMNS]).astype(
        {c.name: types[c.kind] for c in MEASURE_COLUMNS}
    )


def compared_table(
    model: int, keys: Sequence[Key], values: PerInput, base: tuple[Sequence[Key], PerInput, bool] | None, seed: int
) -> pd.DataFrame:
    """Values with intervals, and their changes where the base has the same key."""
    table = _frame(model, keys, estimate(values, seed))
    if base is None:
        return table
    before_keys, before, paired = base
    places = {key: place for place, key in enumerate(before_keys)}
    common = [place for place, key in enumerate(keys) if key in places]
    there = [places[keys[place]] for place in common]
    change = contrast(_chosen(before, there), _chosen(values, common), paired=paired, seed=seed)
    for name, numbers in (("change", change.value), ("change_low", change.low), ("change_high", change.high)):
        column = np.full(len(keys), np.nan)
        column[common] = numbers
        table[name] = column
    return table


def _chosen(values: PerInput, columns: Sequence[int]) -> PerInput:
    return PerInput(values.top[:, columns], values.bottom[:, columns], values.form)


def _frame(model: int, keys: Sequence[Key], found: Estimates) -> pd.DataFrame:
    columns = pd.DataFrame(keys, columns=["group", "measure", "layer", "unit"], dtype=object)
    return columns.assign(model=model, value=found.value, low=found.low, high=found.high, n=found.n)


def _roles(rows: Rows) -> pd.Series:
    roles: pd.Series = rows.table.loc[rows.table["sunk"], "role"].fillna("unknown").astype(object)
    return roles


def _per_input(rows: Rows, roles: Sequence[str]) -> Mapping[Key, tuple[Any, Any]]:
    """Tops and bottoms per input, by key."""
    table, code, n = rows.table, rows.table["code"].to_numpy(), len(rows.inputs)

    def total(values: Any) -> Float[np.ndarray, " inputs"]:
        return np.bincount(code, np.asarray(values, dtype=np.float64), n)

    everything, sunk = total(np.ones(len(table))), table["sunk"].to_numpy()
    event, classes = table["event"], table["class"]
    decided, n_sunk = total(event.notna()), total(sunk)
    found: dict[Key, tuple[Any, Any]] = {
        ("sinks", "sink_rate", None, "share"): (n_sunk, everything),
        ("sinks", "event_rate", None, "share"): (total(event.fillna(False)), decided),
        ("roles", "first token", None, "share"): (total(sunk & (table["sink"].fillna(-1) == 0)), n_sunk),
    }
    for name in ("mass", "virtual_mass"):
        known = table[name].notna()
        found["sinks", name, None, "share"] = (total(table[name].fillna(0)), total(known))
    role = table["role"].fillna("unknown").astype(object).to_numpy()
    for name in roles:
        found["roles", name, None, "share"] = (total(sunk & (role == name)), n_sunk)
    told = total(classes.eq("unknown")) == 0  # an input with an event of unknown class says nothing about classes
    for name in CLASSES:
        found["classes", name, None, "share"] = (total(classes.eq(name)) * told, decided * told)
    found |= _norms(rows)
    return found


def _norms(rows: Rows) -> Iterator[tuple[Key, tuple[Any, Any]]]:
    sinks = rows.table[rows.table["sunk"]]
    ratios = sinks[["code", "layer"]].assign(
        value_ratio=sinks["value_ratio"],
        update_ratio=sinks["update_ratio"],
        hidden_ratio=sinks["hidden_norm"] / sinks["hidden_norm_median"],
    )
    inputs = range(len(rows.inputs))
    for name in ("value_ratio", "update_ratio", "hidden_ratio"):
        typical = ratios.groupby("code")[name].median().reindex(inputs)
        yield ("norms", name, None, "ratio"), _known(typical)
    by_layer = ratios.groupby(["layer", "code"])["hidden_ratio"].median()
    for layer in sorted(rows.table["layer"].unique()):
        there = by_layer.loc[layer] if layer in by_layer.index else pd.Series(dtype=np.float64)
        yield ("norms", "hidden_ratio", int(layer), "ratio"), _known(there.reindex(inputs))


def _known(values: pd.Series) -> tuple[Any, Any]:
    return values.fillna(0.0).to_numpy(np.float64), values.notna().to_numpy(np.float64)


def _compared(
    model: int, own: Mapping[Key, tuple[Any, Any]], base: tuple[Mapping[Key, tuple[Any, Any]], bool] | None, seed: int
) -> pd.DataFrame:
    def stacked(values: Mapping[Key, tuple[Any, Any]]) -> PerInput:
        tops, bottoms = zip(*values.values(), strict=True)
        return PerInput(np.stack(tops, axis=1), np.stack(bottoms, axis=1))

    before = None if base is None else (list(base[0]), stacked(base[0]), base[1])
    return compared_table(model, list(own), stacked(own), before, seed)


def _sink_heads(model: int, rows: Rows, base: tuple[Rows, bool] | None, seed: int) -> pd.DataFrame:
    """The number of sink heads; under a resample those heads count that have a sink often enough in it."""

    def draws(of: Rows, stream: int) -> tuple[Draws, Int[np.ndarray, " one"]]:
        heads = of.artifact.heads.set_index(["layer", "head"]).reindex(of.head_index)
        sunk = PerInput.mean(of.per_head("sunk"))
        alive = (heads["kind"] != "dead").to_numpy()
        counts = ((sunk.draws([seed, stream]) >= SINK_RATE) & alive).sum(axis=1, keepdims=True).astype(np.float64)
        return counts, np.array([len(of.inputs)])

    key: Key = ("sinks", "sink_heads", None, "heads")
    counts, n = draws(rows, 0)
    table = _frame(model, [key], estimated(counts, n))
    if base is not None:
        before, n_before = draws(base[0], 0)
        after = counts if base[1] else draws(rows, 1)[0]
        change = estimated(after - before, np.minimum(n, n_before))
        table = table.assign(change=change.value, change_low=change.low, change_high=change.high)
    return table


def _written(
    model: int, rows: Sequence[Rows], written: Sequence[Mapping[tuple[int, int], Draws]], paired: bool
) -> pd.DataFrame:
    """Medians over sink heads of the shares of what they write."""

    def medians(number: int) -> tuple[Draws, Int[np.ndarray, " shares"]]:
        heads = rows[number].artifact.heads
        sinks = heads.loc[heads["kind"] == "sink", ["layer", "head"]].itertuples(index=False)
        shares = [written[number][head] for head in map(tuple, sinks) if head in written[number]]
        n = len(rows[number].inputs) if shares else 0
        stacked = np.stack(shares) if shares else np.full((1, RESAMPLES + 1, len(SHARES)), np.nan)
        return _median(stacked), np.full(len(SHARES), n)

    keys: list[Key] = [("writes", name, None, "share" if name == "content_share" else "energy") for name in SHARES]
    own, n = medians(model)
    table = _frame(model, keys, estimated(own, n))
    if model:
        before, n_before = medians(0)
        # Draws of equal inputs are the same; others have to be independent, so theirs are put in another order.
        after = own if paired else np.concatenate([own[:1], own[:0:-1]])
        change = estimated(after - before, np.minimum(n, n_before))
        table = table.assign(change=change.value, change_low=change.low, change_high=change.high)
    return table


def _median(values: Float[np.ndarray, "heads draws shares"]) -> Draws:
    """Over heads, of the known ones; NaN where there is none."""
    ordered, known = np.sort(values, axis=0), np.count_nonzero(~np.isnan(values), axis=0)
    middle = [
        np.take_along_axis(ordered, np.maximum(rank, 0)[None], axis=0)[0] for rank in ((known - 1) // 2, known // 2)
    ]
    median: np.ndarray = np.where(known > 0, (middle[0] + middle[1]) / 2, np.nan)
    return median


def _counted(model: int, artifact: Artifact, base: Artifact | None) -> pd.DataFrame:
    own = _counts(artifact)
    before = {} if base is None else _counts(base)
    records = [
        {
            "group": group,
            "measure": name,
            "unit": "heads",
            "model": model,
            "value": count,
            "n": artifact.manifest["n_inputs"],
            "change": count - before[group, name] if (group, name) in before else np.nan,
        }
        for (group, name), count in own.items()
    ]
    return pd.DataFrame(records)


def _counts(artifact: Artifact) -> dict[tuple[str, str], int]:
    """Heads of each kind; of each verdict where some were edited."""
    heads = artifact.heads
    found = {("kinds", kind): int((heads["kind"] == kind).sum()) for kind in KINDS}
    if "verdict" in heads:
        words = heads["verdict"].where(heads["verdict"].notna(), "not edited")
        found |= {("verdicts", word): int((words == word).sum()) for word in VERDICTS}
    return found
