from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from sinkscope.artifact import SHARES
from sinkscope.explain import MIN_SINK_INPUTS, sink_shares

NAMES = list(SHARES)


class Head:
    """One head with explicit writes u = g * (W_O v), from which the artifact's arrays and the truth both follow."""

    def __init__(self, values: np.ndarray, inputs: np.ndarray, ordinary: np.ndarray, n_inputs: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        weight, gain = rng.standard_normal((11, values.shape[1])), rng.uniform(0.5, 2, 11)
        self.inputs, self.ordinary, self.n_inputs = inputs, ordinary, n_inputs
        self.values = values
        self.writes = gain * (values @ weight.T)
        self.gram = weight.T @ np.diag(gain**2) @ weight

    def vectors(self, layer: int = 1, head: int = 2) -> dict[str, np.ndarray]:
        dim = self.values.shape[1]
        grams = np.full((3, 5, dim, dim), np.nan)
        grams[layer, head] = self.gram
        return {
            "energy": np.zeros((self.n_inputs, 3, 5, 4), dtype=np.float32),
            "rows": np.stack([self.inputs, *(np.full_like(self.inputs, n) for n in (layer, head))], axis=1),
            "sink_value": self.values,
            "sink_energy": (self.writes**2).sum(axis=1),
            "ordinary_energy": self.ordinary,
            "gram": grams,
        }

    def shares(self, drawn: np.ndarray | None = None) -> np.ndarray:
        """The definition, pair by pair, over the drawn inputs (all of them once by default)."""
        place = {int(number): row for row, number in enumerate(self.inputs)}
        rows = [place[int(i)] for i in (self.inputs if drawn is None else drawn) if int(i) in place]
        products = self.writes[rows] @ self.writes[rows].T
        different = np.not_equal.outer(rows, rows)
        ordinary = self.ordinary[rows].mean()
        energy, constant = np.diag(products).mean() / ordinary, products[different].mean() / ordinary
        return np.array([max(0, 1 - energy), constant, energy - constant, (energy - constant) / energy])


def _head(seed: int, n_sinks: int, n_inputs: int, common: float = 1.0, dim: int = 3, scale: float = 0.2) -> Head:
    rng = np.random.default_rng(seed)
    values = scale * (common * rng.standard_normal(dim) + rng.standard_normal((n_sinks, dim)))
    inputs = np.sort(rng.choice(n_inputs, n_sinks, replace=False))
    return Head(values, inputs, rng.uniform(1, 3, n_sinks), n_inputs, seed)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    n_sinks=st.integers(MIN_SINK_INPUTS, 23),
    spare=st.integers(0, 19),
    common=st.sampled_from([0.0, 0.3, 5.0]),
    dim=st.sampled_from([1, 2, 7]),
)
def test_shares_are_those_of_the_explicit_writes(seed: int, n_sinks: int, spare: int, common: float, dim: int) -> None:
    head = _head(seed, n_sinks, n_sinks + spare, common, dim)
    table = sink_shares(head.vectors())
    assert table.index.tolist() == [(1, 2)]
    np.testing.assert_allclose(table[NAMES].iloc[0], head.shares(), rtol=1e-9, atol=1e-9)
    silent, constant, content, _ = table[NAMES].iloc[0]
    if silent > 0:
        assert silent + constant + content == pytest.approx(1)


def test_by_hand() -> None:
    """Writes (1, 0) and (0, 1) in turns, ordinary energy 4: energy 1/4, and of the 56 ordered pairs of different
    inputs 24 have product 1, so constant is 24/56/4 = 3/28, content 1/4 - 3/28 = 1/7, silent 3/4."""
    values = np.eye(2)[np.arange(8) % 2]
    vectors = Head(values, np.arange(8), np.full(8, 4.0), 8).vectors()
    vectors["gram"][1, 2], vectors["sink_energy"] = np.eye(2), np.ones(8)
    np.testing.assert_allclose(sink_shares(vectors)[NAMES].iloc[0], [3 / 4, 3 / 28, 1 / 7, 4 / 7])


def test_intervals_are_those_of_resampling_the_explicit_writes() -> None:
    head = _head(3, 19, 29)
    rng = np.random.default_rng(17)
    direct = np.array([head.shares(rng.integers(29, size=29)) for _ in range(4000)])
    table = sink_shares(head.vectors()).iloc[0]
    for column, name in enumerate(NAMES):
        low, high = np.quantile(direct[:, column], [0.025, 0.975])
        found = table[[f"{name}_low", f"{name}_high"]]
        np.testing.assert_allclose(found, [low, high], atol=0.12 * (high - low), err_msg=name)


@pytest.mark.parametrize("common", [0.0, 1.0])
def test_intervals_cover_the_truth(common: float) -> None:
    """Writes are common + noise with unit gain: constant is |common|^2, content the noise's energy."""
    rng = np.random.default_rng(23)
    dim, n, runs = 3, 47, 150
    hits = np.zeros(2)
    for _ in range(runs):
        values = common + rng.standard_normal((n, dim))
        vectors = Head(values, np.arange(n), np.full(n, 10.0), n).vectors()
        vectors["gram"][1, 2], vectors["sink_energy"] = np.eye(dim), (values**2).sum(axis=1)
        row = sink_shares(vectors, seed=int(rng.integers(1 << 30))).iloc[0]
        truths = {"constant": dim * common**2 / 10, "content_share": 1 / (1 + common**2)}
        hits += [row[f"{name}_low"] <= truth <= row[f"{name}_high"] for name, truth in truths.items()]
    # Three standard errors of 95% over 150 runs are 0.053; without noise of its own the interval is too wide.
    assert (hits / runs >= 0.95 - 0.06).all()
    assert common == 0 or (hits / runs <= 0.99).all()


def test_the_same_vector_everywhere_is_constant_and_nothing_else() -> None:
    head = Head(np.tile([[0.3, -0.2, 0.1]], (13, 1)), np.arange(13), np.full(13, 2.0), 13)
    table = sink_shares(head.vectors()).iloc[0]
    energy = (head.writes[0] ** 2).sum() / 2
    np.testing.assert_allclose(table[["constant", "constant_low", "constant_high"]], energy)
    np.testing.assert_allclose(table[["content_share", "content_share_low", "content_share_high"]], 0, atol=1e-12)


def test_a_sink_that_writes_nothing_is_silent_and_has_no_content_share() -> None:
    head = Head(np.zeros((9, 3)), np.arange(9), np.full(9, 2.0), 9)
    table = sink_shares(head.vectors()).iloc[0]
    assert table[["silent", "silent_low", "silent_high", "constant", "content"]].tolist() == [1, 1, 1, 0, 0]
    assert table[["content_share", "content_share_low", "content_share_high"]].isna().all()


def test_unbiased_constant_may_be_below_zero() -> None:
    values = np.array([[1.0], [-1.0]] * 4)
    table = sink_shares(Head(values, np.arange(8), np.ones(8), 8).vectors()).iloc[0]
    assert table["constant"] < 0 and table["content_share"] > 1


def test_seven_inputs_are_too_few() -> None:
    assert sink_shares(_head(1, 7, 100).vectors()).empty
    assert len(sink_shares(_head(1, 8, 100).vectors())) == 1


def test_no_rows_make_an_empty_table() -> None:
    table = sink_shares(_head(1, 0, 5).vectors())
    assert table.empty and table.index.names == ["layer", "head"] and "content_share_high" in table


def test_heads_do_not_mix() -> None:
    one, other = _head(1, 11, 31), _head(2, 17, 31)
    first, second = one.vectors(0, 4), other.vectors(2, 0)
    both = {name: np.concatenate([second[name], first[name]]) for name in first if name not in ("energy", "gram")}
    shuffled = np.random.default_rng(0).permutation(28)
    both = {name: array[shuffled] for name, array in both.items()}
    both["energy"], both["gram"] = first["energy"], np.where(np.isnan(first["gram"]), second["gram"], first["gram"])
    table = sink_shares(both)
    assert table.index.tolist() == [(0, 4), (2, 0)]
    np.testing.assert_allclose(table.iloc[[0]], sink_shares(first), rtol=1e-9)
    np.testing.assert_allclose(table.iloc[[1]], sink_shares(second), rtol=1e-9)


def test_seeds_decide_the_intervals_and_only_them() -> None:
    vectors = _head(5, 13, 17).vectors()
    pd.testing.assert_frame_equal(sink_shares(vectors, 3), sink_shares(vectors, 3))
    one, other = sink_shares(vectors, 3), sink_shares(vectors, 4)
    pd.testing.assert_frame_equal(one[NAMES], other[NAMES])
    assert (one["content_low"] != other["content_low"]).all()
