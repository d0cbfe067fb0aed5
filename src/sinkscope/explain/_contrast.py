"""What numbers of two diagnoses differ by, with bootstrap intervals over inputs, paired where these are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ._resamples import intervals
from ._shares import RESAMPLES

_AT_ONCE = 1 << 24
"""Most weights in memory: resamples times inputs."""
_ROUNDING = 1e-12

Draws = Float[np.ndarray, "draws columns"]


def identity(values: Draws) -> Draws:
    """The statistic is the ratio of means itself."""
    return values


@dataclass(frozen=True)
class PerInput:
    """Numbers of every input whose statistics are `form` of sum(top) / sum(bottom) over inputs.

    - `top`, `bottom`: per input and column; a column that is missing on an input is 0 in both.
    - `form`: of the ratios, column by column.
    """

    top: Float[np.ndarray, "inputs columns"]
    bottom: Float[np.ndarray, "inputs columns"]
    form: Callable[[Draws], Draws] = identity

    @staticmethod
    def mean(values: Float[np.ndarray, "inputs columns"], form: Callable[[Draws], Draws] = identity) -> PerInput:
        """Means over the inputs on which a value is known (not NaN)."""
        known = ~np.isnan(values)
        return PerInput(np.where(known, values, 0.0), known.astype(np.float64), form)

    @property
    def known(self) -> Int[np.ndarray, " columns"]:
        """Number of inputs that count."""
        counted: np.ndarray = np.count_nonzero(self.bottom, axis=0)
        return counted

    def draws(self, seed: list[int]) -> Draws:
        """The statistics of all inputs, then of RESAMPLES bootstrap resamples; equal seeds draw the same inputs."""
        n = len(self.top)
        generator = np.random.default_rng([*seed, n])
        rows = [self._ratio(np.ones((1, n)))]
        step = max(1, _AT_ONCE // n)
        for start in range(0, RESAMPLES, step):
            count = min(step, RESAMPLES - start)
            drawn = generator.integers(n, size=(count, n)) + n * np.arange(count)[:, None]
            rows.append(self._ratio(np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)))
        return self.form(np.concatenate(rows))

    def _ratio(self, weights: Float[np.ndarray, "draws inputs"] | Int[np.ndarray, "draws inputs"]) -> Draws:
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio: np.ndarray = (weights @ self.top) / (weights @ self.bottom)
        return ratio


@dataclass(frozen=True)
class Estimates:
    """Values with 95% intervals, NaN where there is none; `n` inputs each."""

    value: Float[np.ndarray, " columns"]
    low: Float[np.ndarray, " columns"]
    high: Float[np.ndarray, " columns"]
    n: Int[np.ndarray, " columns"]


def estimate(values: PerInput, seed: int) -> Estimates:
    """The statistics with intervals over inputs."""
    return estimated(values.draws([seed, 0]), values.known)


def contrast(before: PerInput, after: PerInput, *, paired: bool, seed: int) -> Estimates:
    """`after` minus `before`, column by column.

    **Arguments:**

    - `paired`: row i of both is the same input: both are resampled together. Else each on its own.
    """
    difference = after.draws([seed, 0 if paired else 1]) - before.draws([seed, 0])
    return estimated(difference, np.minimum(before.known, after.known))


def estimated(draws: Draws, known: Int[np.ndarray, " columns"]) -> Estimates:
    """Values and 95% percentile intervals, widened for few inputs (see `intervals`), of drawn statistics; the first
    row is of all inputs.

    No interval under 3 inputs, and none where all resamples agree: then they tell nothing.
    """
    no_jackknife = np.full((1, draws.shape[1]), np.nan)
    ends = intervals(np.concatenate([draws, no_jackknife]), 1, known, ratios=True)
    finite = np.where(np.isfinite(draws), draws, draws[:1])
    with np.errstate(invalid="ignore"):
        alike = ~(np.ptp(finite, axis=0) > _ROUNDING * np.abs(draws[0]))
    low, high = (np.where(alike, np.nan, end) for end in ends)
    return Estimates(draws[0], low, high, known)
