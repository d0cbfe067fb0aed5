"""Bootstrap of numbers per input: values, intervals, and changes that are paired or not."""

from __future__ import annotations

import numpy as np
import pytest

from sinkscope.explain import RESAMPLES, PerInput, contrast, estimate


def normal(n: int, columns: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, columns))


def test_the_value_is_the_ratio_of_sums() -> None:
    top, bottom = np.array([[1.0, 5.0], [2.0, 0.0], [4.0, 1.0]]), np.array([[2.0, 5.0], [2.0, 0.0], [3.0, 1.0]])
    found = estimate(PerInput(top, bottom), 0)
    np.testing.assert_allclose(found.value, [1.0, 1.0])
    assert found.n.tolist() == [3, 2]


def test_inputs_that_are_not_known_do_not_count() -> None:
    found = estimate(PerInput.mean(np.array([[1.0], [np.nan], [4.0], [7.0]])), 0)
    assert found.value.item() == pytest.approx(4.0)
    assert found.n.item() == 3


def test_a_form_is_taken_of_the_ratio() -> None:
    found = estimate(PerInput.mean(np.array([[4.0], [16.0], [16.0]]), np.sqrt), 0)
    assert found.value.item() == pytest.approx(np.sqrt(12))


def test_the_interval_of_a_mean_is_that_of_students_t() -> None:
    n = 61
    values = normal(n, 40)
    found = estimate(PerInput.mean(values), 0)
    half = 2.0003 * values.std(axis=0, ddof=1) / np.sqrt(n)  # Student's t, 60 degrees of freedom, 97.5%
    assert np.median((found.high - found.low) / (2 * half)) == pytest.approx(1, abs=0.05)
    covered = (found.low < 0) & (found.high > 0)
    assert covered.mean() > 0.85


def test_pairing_takes_out_what_inputs_have_in_common() -> None:
    common, own = 5 * normal(37, 1), normal(37, 1, seed=1)
    before, after = PerInput.mean(common), PerInput.mean(common + 0.3 + 0.1 * own)
    paired = contrast(before, after, paired=True, seed=0)
    apart = contrast(before, after, paired=False, seed=0)
    assert paired.value == pytest.approx(apart.value)
    assert 0.1 < paired.low.item() < paired.high.item() < 0.5
    assert (apart.high - apart.low).item() > 20 * (paired.high - paired.low).item()


def test_unpaired_resamples_are_independent() -> None:
    values = PerInput.mean(normal(41, 1))
    apart = contrast(values, values, paired=False, seed=0)
    single = estimate(values, 0)
    assert apart.value.item() == 0
    wide, narrow = (apart.high - apart.low).item(), (single.high - single.low).item()
    assert wide / narrow == pytest.approx(np.sqrt(2), rel=0.15)


def test_no_interval_where_resamples_agree_and_under_three_inputs() -> None:
    values = normal(11, 1)
    same = contrast(PerInput.mean(values), PerInput.mean(values), paired=True, seed=0)
    assert same.value.item() == 0 and np.isnan([same.low.item(), same.high.item()]).all()
    constant = estimate(PerInput.mean(np.full((11, 1), 0.1)), 0)
    assert constant.value.item() == pytest.approx(0.1) and np.isnan(constant.low.item())
    few = estimate(PerInput.mean(normal(2, 1)), 0)
    assert np.isnan(few.high.item())


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = PerInput.mean(normal(13))
    together = values.draws([7, 0])
    monkeypatch.setattr("sinkscope.explain._contrast._AT_ONCE", 13 * 17)
    np.testing.assert_array_equal(values.draws([7, 0]), together)
    assert together.shape == (RESAMPLES + 1, 3)
    np.testing.assert_allclose(together[0], values.top.mean(axis=0))
