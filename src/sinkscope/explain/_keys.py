"""What rules about keys need: sinks per key, and column sums."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float

GU_THRESHOLD = 0.3
"""Gu et al. 2025: a key is a sink where its mass is above this."""


def sink_by_key(events: pd.DataFrame, threshold: float = GU_THRESHOLD) -> pd.DataFrame:
    """Sink_k of Gu et al. 2025 (arXiv:2410.10781): the share of (layer, head), averaged over inputs, where key k has
    mass above `threshold`. By convention inputs are 64 tokens long and k is the first.

    Only candidate keys count (for a causal mask those with enough queries), and an event row keeps four. Where all
    four are above the threshold there could be more: such rows widen `share_high` of every key they do not name.

    **Arguments:**

    - `events`: event rows with `top_sinks` and `top_masses`.
    - `threshold`: in (0, 1).

    **Returns:** one row per key that is ever above the threshold, by key: `key`, `n_rows` (how often it is),
    `share`, and `share_high`, which equals `share` unless four keys were not enough.
    """
    table = pa.Table.from_pandas(events[["top_sinks", "top_masses"]], preserve_index=False)
    keys, masses = (column.combine_chunks() for column in table.columns)
    above = masses.flatten().to_numpy(zero_copy_only=False) > np.float32(threshold)
    rows = pc.list_parent_indices(masses).to_numpy()
    key = keys.flatten().to_numpy(zero_copy_only=False)[above]
    full = np.bincount(rows, weights=above, minlength=len(events)) >= 4
    names, counts = np.unique(key, return_counts=True)
    named_by_full = pd.Series(full[rows[above]]).groupby(key).sum().reindex(names, fill_value=0).to_numpy()
    possible = counts + full.sum() - named_by_full
    total = max(len(events), 1)
    return pd.DataFrame(
        {"key": names, "n_rows": counts, "share": counts / total, "share_high": possible / total}
    ).reset_index(drop=True)


def column_excess(events: pd.DataFrame) -> Float[np.ndarray, " rows"]:
    """n * mass of the sink minus the mean of n * mass over the other keys, for the rule of Rulli et al. 2025
    (arXiv:2510.15731), whose threshold 3 only makes sense for column sums n * mass, not for means.

    Where every query sees all n keys, the masses of all keys sum to 1 - virtual_mass, so the mean over the others is
    n (1 - virtual_mass - mass) / (n - 1): exact. Under a causal or windowed mask n * mass is no column sum and the
    event columns do not hold what is: the result is NaN.

    n itself comes from the two entropy columns: where every query sees n keys, entropy / entropy_share = log n. A
    layer counts as such when this gives a whole number in all of its rows, the same for all heads of an input; a
    layer where it does not, or where every entropy is 0, gives NaN. Float32 resolves this up to about 10,000 keys.

    **Arguments:**

    - `events`: all rows of the layers in question, with `input`, `layer`, `mass`, `virtual_mass`, `entropy` and
      `entropy_share`.
    """
    n = _visible_keys(events)
    mass, virtual = (events[name].to_numpy(dtype=np.float64) for name in ("mass", "virtual_mass"))
    with np.errstate(divide="ignore", invalid="ignore"):
        excess: np.ndarray = n * mass - n * (1 - virtual - mass) / (n - 1)
    return excess


def _visible_keys(events: pd.DataFrame) -> Float[np.ndarray, " rows"]:
    entropy, share = (events[name].to_numpy(dtype=np.float64) for name in ("entropy", "entropy_share"))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        n = np.where(share > 0, np.exp(entropy / share), np.nan)
        # What rounding the two columns to float32 does to n, with room for the kernel's own float32 sums.
        tolerance = 1e-4 + 1e-6 * n * np.log(n)
    whole = np.rint(n)
    fits = np.isnan(n) | ((np.abs(n - whole) <= tolerance) & (tolerance < 0.1))
    per_input = pd.Series(whole, index=events.index).groupby([events["input"], events["layer"]])
    first = per_input.transform("min").to_numpy()
    fits &= np.isnan(n) | (whole == first)
    layer_fits = pd.Series(fits, index=events.index).groupby(events["layer"]).transform("all").to_numpy()
    return np.where(layer_fits, first, np.nan)
