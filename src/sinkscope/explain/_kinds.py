"""What kind of head it is: heads that are no sinks but look alike are labelled as what they are."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ._intervals import median_interval

SINK_RATE = 0.1
"""A head is a sink head when this share of inputs has a sink."""

DEAD_RATIO = 0.05
"""A head is dead when its largest token write stays below this share of what its layer's heads write on average."""

UNIFORM_ENTROPY_SHARE = 0.95
"""A head averages uniformly when the median of its entropy, as a share of the largest possible, reaches this."""

DIAGONAL = 0.5
"""A head attends to itself when the median weight of queries on themselves reaches this."""


def kinds(
    dead: np.ndarray,
    sink_rate: Float[np.ndarray, " heads"],
    entropy_share: Float[np.ndarray, " heads"],
    diagonal: Float[np.ndarray, " heads"],
) -> np.ndarray:
    """`dead`, `sink`, `uniform`, `diagonal` or `none` per head: the first that holds, in this order. The last two
    arguments are medians over inputs."""
    # Medians are compared in the precision of what they are medians of.
    uniform = entropy_share.astype(np.float32) >= np.float32(UNIFORM_ENTROPY_SHARE)
    tests = [dead, sink_rate >= SINK_RATE, uniform, diagonal.astype(np.float32) >= np.float32(DIAGONAL)]
    return np.select(tests, ["dead", "sink", "uniform", "diagonal"], "none")


def has_sink(heads: pd.DataFrame) -> pd.Series:
    """Which rows of the table of heads have a sink to judge: sink heads, and dead heads with a sink as often."""
    dead = heads["kind"].eq("dead") & heads["sink_rate"].ge(SINK_RATE)
    return heads["kind"].eq("sink") | dead


def dead_heads(
    energy: Float[np.ndarray, "inputs layers heads_per_layer 4"],
    layer: Int[np.ndarray, " heads"],
    head: Int[np.ndarray, " heads"],
) -> np.ndarray:
    """Whether each head is dead: the median over inputs of max_j |u_j| is at most DEAD_RATIO times the layer's
    median over heads of (the median over inputs of) mean_j |u_j|. A layer with a single head is compared with the
    layers instead. Where the projection is not known, mean_j |v_j| stands for both.

    In a layer where most heads are dead the median is one of a dead head, so that they may pass for living; where all
    writes are exactly 0 all heads are dead.

    **Arguments:**

    - `energy`: [mean |v_j|, mean |u_j|, max |u_j|, |U|_F / sqrt(n)], NaN where unknown.
    - `layer`, `head`: the heads in question.
    """
    mean_value, mean_write, largest_write = (
        median_interval(energy[:, layer, head, column].T)[0] for column in (0, 1, 2)
    )
    projected = ~np.isnan(mean_write)
    largest = np.where(projected, largest_write, mean_value)
    mean = np.where(projected, mean_write, mean_value)
    dead = np.zeros(len(layer), dtype=bool)
    for place in range(len(layer)):
        peers = (layer == layer[place]) & (projected == projected[place])
        if np.count_nonzero(layer == layer[place]) == 1:
            peers = projected == projected[place]
        dead[place] = np.float32(largest[place]) <= np.float32(DEAD_RATIO * np.median(mean[peers]))
    return dead
