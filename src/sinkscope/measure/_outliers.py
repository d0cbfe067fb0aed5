"""Outliers of activations: how large the largest is, and how heavy the tails are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Outliers:
    """Per input, in float64; NaN for an input without tokens, kurtoses also where all activations are equal.

    - `largest`: max |x|, the infinity norm of Bondarenko et al. 2023, arXiv:2306.12929.
    - `median`: median |x|, the lower one of two. Largest over median is how massive activations are told in Sun et al.
      2024, arXiv:2402.17762.
    - `kurtosis`: over all tokens and channels, mean (x - m)^4 / (mean (x - m)^2)^2, 3 for a normal distribution
      (Bondarenko et al. 2023).
    - `channel_kurtosis`: over channels c of what is pooled over tokens, s_c^2 = mean_i x_ic^2: mean s_c^4 / (mean
      s_c^2)^2, from 1 (all channels alike) to the number of channels (He et al. 2024, arXiv:2405.19279).
    """

    largest: Float[Tensor, " inputs"]
    median: Float[Tensor, " inputs"]
    kurtosis: Float[Tensor, " inputs"]
    channel_kurtosis: Float[Tensor, " inputs"]


def outliers(hidden: Float[Tensor, "inputs tokens channels"], valid: Bool[Tensor, "inputs tokens"]) -> Outliers:
    """Outliers of every input over the tokens that are valid."""
    rows = [_of_one(x[kept]) for x, kept in zip(hidden, valid.to(hidden.device), strict=True)]
    return Outliers(*torch.tensor(rows, dtype=torch.float64).reshape(-1, 4).unbind(1))


def _of_one(x: Float[Tensor, "tokens channels"]) -> tuple[float, ...]:
    if not len(x):
        return (torch.nan,) * 4
    size = x.abs()
    exact = x.double()
    pooled = exact.square().mean(0)
    squares = (exact - exact.mean()).square()
    kurtosis = squares.square().mean() / squares.mean().square()
    channels = pooled.square().mean() / pooled.mean().square()
    return float(size.max()), float(size.median()), float(kurtosis), float(channels)
