"""The event columns from their plain definitions: full matrices, float64, one input and one head at a time.

Written from the words of the docs' concepts page and independent of sinkscope.measure on purpose: nothing is imported
from the package, the write U is formed and its singular values are taken, visibility is a matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

Row: TypeAlias = dict[str, np.ndarray | float | int]

TOP = 4
COLUMNS = (
    "mass",
    "routed",
    "min_mass",
    "value_ratio",
    "update_ratio",
    "stable_rank",
    "diagonal",
    "entropy",
    "entropy_share",
    "hidden_norm",
    "hidden_norm_median",
    "virtual_mass",
)
"""Event columns that are one number."""
BESIDE = ("energy", "sink_energy", "ordinary_energy", "sink_value", "received", "top_masses")
"""Arrays that are kept beside the event table, or lists in it."""


@dataclass(frozen=True)
class ReferenceLayer:
    """One attention call as an independent program sees it, all in float64.

    - `weights`: columns beyond the number of tokens are virtual keys (learned sinks, zero or learned key-values).
    - `values`: of every column, per query head; zeros for a learned sink.
    - `visible`: which token keys the query may see.
    - `valid`: tokens that are no padding.
    - `projection`: as nn.Linear stores it; None where a head's write is not linear in its output.
    - `hidden`: the residual block's input.
    """

    weights: Float[Tensor, "batch heads tokens keys"]
    values: Float[Tensor, "batch heads keys dim"]
    visible: Bool[Tensor, "batch tokens tokens"]
    valid: Bool[Tensor, "batch tokens"]
    projection: Float[Tensor, "residual heads_times_dim"] | None
    layer_scale: Float[Tensor, " residual"] | None
    hidden: Float[Tensor, "batch tokens residual"] | None


def visible_keys(
    valid: Bool[Tensor, "batch tokens"], causal: bool = False, window: int | None = None
) -> Bool[Tensor, "batch tokens tokens"]:
    """Query i sees valid key j; with `causal` only j <= i, with `window` only the `window` last ones of those."""
    batch, tokens = valid.shape
    visible = torch.zeros(batch, tokens, tokens, dtype=torch.bool)
    for b in range(batch):
        for i in range(tokens):
            for j in range(tokens):
                past = j <= i if causal else True
                near = i - j < window if window is not None else True
                visible[b, i, j] = bool(valid[b, j]) and past and near
    return visible


def candidates(visible: Bool[np.ndarray, "tokens tokens"], valid: Bool[np.ndarray, " tokens"]) -> list[int]:
    """Keys that may be called a sink.

    Where every valid token sees every other one, all of them. Else those that max(8, n/4) valid queries see; where the
    window is so narrow that there is none, n is the largest number of queries of any key.
    """
    tokens = [int(j) for j in np.flatnonzero(valid)]
    seen_by = {j: sum(bool(visible[i, j]) for i in tokens) for j in tokens}
    if all(count == len(tokens) for count in seen_by.values()):
        return tokens
    for n in (len(tokens), max(seen_by.values())):
        enough = [j for j in tokens if seen_by[j] >= max(8, n / 4)]
        if enough:
            return enough
    return []


def reference_columns(layer: ReferenceLayer) -> dict[str, np.ndarray]:
    """Every event column and the arrays beside them, (batch, heads, ...); NaN and -1 where not defined."""
    batch, heads = layer.weights.shape[:2]
    rows = [[_row(layer, b, h) for h in range(heads)] for b in range(batch)]
    return {name: np.array([[row[name] for row in of_input] for of_input in rows]) for name in rows[0][0]}


def _row(layer: ReferenceLayer, b: int, h: int) -> Row:
    a, v = layer.weights[b, h].numpy(), layer.values[b, h].numpy()
    visible, valid = layer.visible[b].numpy(), layer.valid[b].numpy()
    n = len(valid)
    queries = [i for i in range(n) if valid[i] and visible[i].any()]
    received = np.zeros(n)
    for j in range(n):
        of_key = [i for i in queries if visible[i, j]]
        received[j] = np.mean(a[of_key, j]) if of_key else 0.0
    possible = sorted(candidates(visible, valid), key=lambda j: -received[j])
    row: Row = {
        "sink": possible[0] if possible else -1,
        "received": received,
        "top_sinks": _padded(possible[:TOP], -1),
        "top_masses": _padded([received[j] for j in possible[:TOP]], np.nan),
        "diagonal": np.mean([a[i, i] for i in queries]),
        "virtual_mass": np.mean([a[i, n:].sum() for i in queries]),
    }
    row |= _entropies(a[:, :n], visible, queries) | _writes(layer, a, v, queries, b, h)
    row |= dict.fromkeys(("mass", "routed", "min_mass", "value_ratio", "update_ratio", "hidden_norm"), np.nan)
    row |= {"sink_energy": np.nan, "ordinary_energy": np.nan, "sink_value": np.zeros(v.shape[1])}
    if possible:
        row |= _sink(layer, possible[0], a, v, b, h)
    hidden = None if layer.hidden is None else np.linalg.norm(layer.hidden[b].numpy(), axis=-1)
    row["hidden_norm_median"] = np.nan if hidden is None else np.median(hidden[valid])
    if hidden is not None and possible:
        row["hidden_norm"] = hidden[possible[0]]
    return row


def _sink(layer: ReferenceLayer, s: int, a: np.ndarray, v: np.ndarray, b: int, h: int) -> Row:
    visible, valid = layer.visible[b].numpy(), layer.valid[b].numpy()
    column = np.array([a[i, s] for i in range(len(valid)) if valid[i] and visible[i, s]])
    others = [j for j in range(len(valid)) if valid[j] and j != s]
    lengths = np.linalg.norm(v, axis=-1)
    row: Row = {
        "mass": column.mean(),
        "routed": float(np.mean(column >= 0.5)),
        "min_mass": column.min(),
        "value_ratio": lengths[s] / lengths[others].mean(),
        "sink_value": v[s],
    }
    u = _written(layer, v, h)
    if u is not None:
        lengths = np.linalg.norm(u, axis=-1)
        row["update_ratio"] = lengths[s] / lengths[others].mean()
        row["sink_energy"] = lengths[s] ** 2
        row["ordinary_energy"] = float(np.mean(lengths[others] ** 2))
    return row


def _written(layer: ReferenceLayer, v: np.ndarray, h: int) -> np.ndarray | None:
    """u_j = g * (W_O^h v_j)."""
    if layer.projection is None:
        return None
    d = v.shape[1]
    u: np.ndarray = v @ layer.projection.numpy()[:, h * d : (h + 1) * d].T
    return u if layer.layer_scale is None else u * layer.layer_scale.numpy()


def _writes(
    layer: ReferenceLayer, a: np.ndarray, v: np.ndarray, queries: list[int], b: int, h: int
) -> dict[str, np.ndarray | float]:
    valid = layer.valid[b].numpy()
    n = len(valid)
    value_mean = np.linalg.norm(v[:n][valid], axis=-1).mean()
    u = _written(layer, v, h)
    if u is None:
        return {"stable_rank": np.nan, "energy": np.array([value_mean, np.nan, np.nan, np.nan])}
    written = a[queries] @ u
    singular = np.linalg.svd(written, compute_uv=False)
    lengths = np.linalg.norm(u[:n][valid], axis=-1)
    rms = np.sqrt((written**2).sum() / len(queries))
    return {
        "stable_rank": (singular**2).sum() / singular[0] ** 2,
        "energy": np.array([value_mean, lengths.mean(), lengths.max(), rms]),
    }


def _entropies(a: np.ndarray, visible: np.ndarray, queries: list[int]) -> dict[str, float]:
    entropy = {i: float(-sum(p * np.log(p) for p in a[i] if p > 0)) for i in queries}
    shares = [entropy[i] / np.log(visible[i].sum()) for i in queries if visible[i].sum() > 1]
    return {"entropy": float(np.mean(list(entropy.values()))), "entropy_share": float(np.mean(shares or [np.nan]))}


def _padded(values: list[int] | list[float], fill: float) -> np.ndarray:
    return np.array([*values, *[fill] * (TOP - len(values))])
