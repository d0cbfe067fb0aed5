from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.stats import binomtest

from sinkscope.explain import median_interval, wilson


def test_wilson_known_values() -> None:
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    low, high = wilson(np.array([81, 15, 0, 1]), np.array([263, 148, 20, 29]))
    np.testing.assert_allclose(low, [0.2553, 0.0624, 0.0, 0.0061], atol=5e-5)
    np.testing.assert_allclose(high, [0.3662, 0.1605, 0.1611, 0.1718], atol=5e-5)


@given(st.integers(1, 5000), st.data())
def test_wilson_agrees_with_scipy(trials: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson(np.array([successes]), np.array([trials]))
    wanted = binomtest(successes, trials).proportion_ci(method="wilson")
    np.testing.assert_allclose([low[0], high[0]], [wanted.low, wanted.high], atol=1e-12)
    assert 0 <= low[0] <= successes / trials <= high[0] <= 1


def test_no_trials_have_no_interval() -> None:
    assert np.isnan(wilson(np.array([0]), np.array([0]))).all()


def _all_medians(values: np.ndarray) -> np.ndarray:
    """Medians of all m ** m equally likely resamples."""
    medians: np.ndarray = np.median(np.array(list(itertools.product(values, repeat=len(values)))), axis=1)
    return medians


@pytest.mark.parametrize("values", [[3.0], [5.0, 1.0, 2.0], [2.0, 9.0, 4.0, 4.5, 1.0], [1.0, 1.0, 7.0, 7.5, 1.0]])
def test_odd_counts_have_the_exact_bootstrap_interval(values: list[float]) -> None:
    medians = _all_medians(np.array(values))
    median, low, high = median_interval(np.array([values]))
    wanted = np.quantile(medians, [0.025, 0.975], method="inverted_cdf")
    assert median[0] == np.median(values)
    assert [low[0], high[0]] == wanted.tolist()


@pytest.mark.parametrize("values", [[3.0, 4.0], [5.0, 1.0, 2.0, 2.5], [2.0, 9.0, 4.0, 4.5, 1.0, 3.0]])
def test_even_counts_are_never_too_narrow_and_at_most_one_step_too_wide(values: list[float]) -> None:
    medians = _all_medians(np.array(values))
    median, low, high = median_interval(np.array([values]))
    wanted_low, wanted_high = np.quantile(medians, [0.025, 0.975], method="inverted_cdf")
    ordered = np.sort(values)
    assert median[0] == np.median(values)
    assert low[0] <= wanted_low <= ordered[min(np.searchsorted(ordered, low[0]) + 1, len(values) - 1)]
    assert high[0] >= wanted_high >= ordered[max(np.searchsorted(ordered, high[0]) - 1, 0)]


@pytest.mark.parametrize("count", [101, 64])
def test_the_interval_is_what_resampling_converges_to(count: int) -> None:
    rng = np.random.default_rng(5)
    values = rng.exponential(size=count)
    medians = np.median(rng.choice(values, (40_000, count)), axis=1)
    ranks = np.argsort(np.argsort(values))
    _, low, high = median_interval(values[None])
    for end, tail in ((low[0], 0.025), (high[0], 0.975)):
        position = np.searchsorted(np.sort(values), np.quantile(medians, tail))
        assert abs(ranks[values == end][0] - position) <= 1


def test_missing_values_do_not_count() -> None:
    nan = np.nan
    values = np.array([[nan, 4.0, nan, 1.0, 2.0], [nan] * 5, [7.0, 7.0, 7.0, nan, 7.0]])
    median, low, high = median_interval(values)
    np.testing.assert_array_equal(median, [2, nan, 7])
    np.testing.assert_array_equal(low, [1, nan, 7])
    np.testing.assert_array_equal(high, [4, nan, 7])


def test_the_interval_covers_the_true_median() -> None:
    rng = np.random.default_rng(11)
    _, low, high = median_interval(rng.standard_normal((4000, 53)))
    assert 0.93 <= np.mean((low <= 0) & (high >= 0)) <= 0.97
