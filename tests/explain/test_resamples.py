from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import bootstrap, norm, t

from sinkscope.explain._resamples import intervals, resample_weights, weighted_means

RESAMPLES = 997


def _level(n: int) -> float:
    """What a nominal 95% is widened to."""
    return float(1 - 2 * norm.sf(np.sqrt(n / (n - 1)) * t.ppf(0.975, n - 1)))


@pytest.mark.parametrize("n", [8, 11, 64])
@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_ends_are_those_of_scipy_from_the_same_resamples(n: int, method: str) -> None:
    values = np.random.default_rng(n).lognormal(size=n)
    weights = resample_weights(n, RESAMPLES, seed=3)
    statistics = np.sqrt(weighted_means(weights, values[:, None]))
    low, high = intervals(statistics, n, np.array([n]), ratios=method == "percentile")
    expected = bootstrap(
        (values,),
        lambda x, axis: np.sqrt(np.mean(x, axis=axis)),
        n_resamples=0,
        confidence_level=_level(n),
        method=method,
        bootstrap_result=SimpleNamespace(bootstrap_distribution=statistics[1 : 1 + RESAMPLES, 0]),
    ).confidence_interval
    np.testing.assert_allclose([low[0], high[0]], [expected.low, expected.high], rtol=1e-12)


def test_resamples_are_drawn_with_replacement() -> None:
    weights = resample_weights(5, 20_000, seed=0)
    assert weights.shape == (1 + 20_000 + 5, 5)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_array_equal(weights[0], np.full(5, 0.2))
    np.testing.assert_array_equal(weights[-5:], (1 - np.eye(5)) / 4)
    drawn = weights[1:-5] * 5
    np.testing.assert_array_equal(drawn, np.rint(drawn))
    # Multinomial: variance n p (1 - p) and covariance -n p^2.
    np.testing.assert_allclose(np.cov(drawn.T), np.eye(5) - 0.2, atol=0.03)


def test_same_seed_same_resamples() -> None:
    np.testing.assert_array_equal(resample_weights(7, 100, seed=4), resample_weights(7, 100, seed=4))
    assert not np.array_equal(resample_weights(7, 100, seed=4), resample_weights(7, 100, seed=5))


def test_means_leave_out_what_is_not_known() -> None:
    weights = np.array([[0.25, 0.25, 0.5], [0.0, 1.0, 0.0]])
    values = np.array([[2.0, 1.0], [np.nan, 3.0], [8.0, 5.0]])
    np.testing.assert_allclose(weighted_means(weights, values), [[(2 + 2 * 8) / 3, 3.5], [np.nan, 3.0]])


def test_few_inputs_and_degenerate_ones() -> None:
    def ends(values: list[float]) -> tuple[float, float]:
        column = np.array(values)[:, None]
        known = np.count_nonzero(~np.isnan(column), axis=0)
        statistics = weighted_means(resample_weights(len(values), RESAMPLES, 0), column)
        low, high = intervals(statistics, len(values), known)
        return float(low[0]), float(high[0])

    assert np.isnan(ends([1.0, 2.0])).all()
    assert np.isnan(ends([1.0, np.nan, np.nan, 2.0])).all()
    low, high = ends([1.0, 2.0, 4.0])
    assert low == 1.0
    assert high == 4.0  # percentile: its tails hold less than one resample in 27
    assert ends([0.5] * 13) == pytest.approx((0.5, 0.5))
    assert ends([0.0] * 13) == (0.0, 0.0)
