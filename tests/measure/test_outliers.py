"""Outliers of activations against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from sinkscope.measure import outliers


def hidden(inputs: int = 3, tokens: int = 7, width: int = 11) -> torch.Tensor:
    return torch.randn(inputs, tokens, width, generator=torch.Generator().manual_seed(0)) ** 3


def test_they_are_those_of_the_valid_tokens() -> None:
    x, valid = hidden(), torch.ones(3, 7, dtype=torch.bool)
    valid[1, 4:] = False
    x[1, 5, 3] = 1e6
    found = outliers(x, valid)
    for row in range(3):
        own = x[row, valid[row]].double().numpy()
        assert found.largest[row].item() == np.abs(own).max()
        assert found.median[row].item() == pytest.approx(np.quantile(np.abs(own), 0.5, method="inverted_cdf"))
        assert found.kurtosis[row].item() == pytest.approx(scipy.stats.kurtosis(own, axis=None, fisher=False))


def test_kurtosis_of_channels_tells_how_many_are_large() -> None:
    valid = torch.ones(1, 5, dtype=torch.bool)
    signs = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0])
    alike = signs[:, None].expand(5, 13)
    assert outliers(alike[None], valid).channel_kurtosis.item() == pytest.approx(1)
    single = torch.zeros(1, 5, 13)
    single[0, :, 2] = 3 * signs
    assert outliers(single, valid).channel_kurtosis.item() == pytest.approx(13)


def test_a_massive_token_is_seen_in_half_precision() -> None:
    x = torch.full((1, 17, 19), 0.5, dtype=torch.bfloat16)
    x[0, 0, 4] = 20_000
    found = outliers(x, torch.ones(1, 17, dtype=torch.bool))
    assert found.largest.item() == pytest.approx(20_000, rel=0.01)
    assert found.median.item() == 0.5
    assert found.kurtosis.item() == pytest.approx(17 * 19, rel=0.02)  # one of n values holds all of the variance


def test_without_tokens_or_spread_there_is_no_number() -> None:
    valid = torch.tensor([[True, True], [False, False]])
    found = outliers(torch.ones(2, 2, 3), valid)
    assert found.largest[0] == 1 and torch.isnan(found.largest[1])
    assert torch.isnan(found.kurtosis).all()
