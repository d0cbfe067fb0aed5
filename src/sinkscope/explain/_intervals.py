"""95% intervals of rates and medians, for many heads at once."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Num
from scipy.special import betaincinv, ndtri

LEVEL = 0.95
TAIL = (1 - LEVEL) / 2


def wilson(
    successes: Num[np.ndarray, " heads"], trials: Num[np.ndarray, " heads"]
) -> tuple[Float[np.ndarray, " heads"], Float[np.ndarray, " heads"]]:
    """Wilson's 95% score interval of a rate (Wilson 1927, JASA 22:209), NaN where there are no trials."""
    k, n = successes.astype(np.float64), trials.astype(np.float64)
    z = float(ndtri(1 - TAIL))
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = (k + z**2 / 2) / (n + z**2)
        half = z / (n + z**2) * np.sqrt(k * (n - k) / n + z**2 / 4)
    # The exact ends at no and only successes are 0 and 1; rounding would miss them.
    low = np.where(k == 0, 0.0, centre - half)
    high = np.where(k == n, 1.0, centre + half)
    return np.where(n > 0, low, np.nan), np.where(n > 0, high, np.nan)


def median_interval(
    values: Float[np.ndarray, "heads inputs"],
) -> tuple[Float[np.ndarray, " heads"], Float[np.ndarray, " heads"], Float[np.ndarray, " heads"]]:
    """Median over inputs with its 95% percentile bootstrap interval, NaN where there is no value.

    No resampling is needed: of m values, the r-th smallest of a resample is at most the i-th smallest value with
    probability P(Binomial(m, i/m) >= r) = I(i/m; r, m - r + 1), the regularised incomplete beta function (Efron 1979,
    Annals of Statistics 7:1, section 3; Maritz and Jarrett 1978, JASA 73:194). For odd m this is the exact
    distribution of the resampled median. For even m a resampled median lies between its two middle values; the lower
    end is taken from the lower one and the upper end from the upper one, so the interval is never too narrow, and too
    wide by less than one step to the next value.

    **Arguments:**

    - `values`: NaN where missing.

    **Returns:** median, low, high.
    """
    ordered = np.sort(values, axis=1)
    m = np.count_nonzero(~np.isnan(values), axis=1)
    lower, upper = (m + 1) // 2, m // 2 + 1
    known = m > 0
    middle = [_pick(ordered, rank, known) for rank in (lower, upper)]
    with np.errstate(invalid="ignore"):
        low_rank = np.ceil(m * betaincinv(lower, m - lower + 1, TAIL))
        high_rank = np.ceil(m * betaincinv(upper, m - upper + 1, 1 - TAIL))
    return (middle[0] + middle[1]) / 2, _pick(ordered, low_rank, known), _pick(ordered, high_rank, known)


def _pick(
    ordered: Float[np.ndarray, "heads inputs"], rank: Num[np.ndarray, " heads"], known: np.ndarray
) -> Float[np.ndarray, " heads"]:
    picked = np.full(len(ordered), np.nan)
    rows = np.flatnonzero(known)
    picked[rows] = ordered[rows, np.clip(rank[rows].astype(np.int64), 1, None) - 1]
    return picked
