"""Planted heads that are no working sinks: inert, uniform, diagonal, dead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from ._plant_states import States, attend
from ._plant_values import write_energy
from ._plant_weights import HeadWeights

NO_SINK = ("uniform", "diagonal", "dead")

_STEPS = 30
_RMS_ENERGY = 0.01


def without_sink(weights: HeadWeights, states: States, mechanism: str, mass: float, energy: float) -> HeadWeights:
    """A head that averages uniformly, looks at itself with that mean weight, or has values 0."""
    if mechanism == "dead":
        bv = None if weights.bv is None else torch.zeros_like(weights.bv)
        return replace(weights, wv=torch.zeros_like(weights.wv), bv=bv)
    usual = _with_energy(weights, states, energy)
    if mechanism == "uniform":
        bq = None if weights.bq is None else torch.zeros_like(weights.bq)
        return replace(usual, wq=torch.zeros_like(weights.wq), bq=bq)
    return _diagonal(usual, states, mass)


def unread(
    weights: HeadWeights, states: States, gains: Sequence[Tensor] | None, energy: float, seed: int
) -> HeadWeights:
    """The head's values as they are, written along one direction that the rest of the network hardly reads.

    Behind a LayerNorm that is the constant vector: its mean is taken off before anything reads it. An RMSNorm takes
    nothing off; there it is the residual dimension with the smallest norm weights, and the head writes a tenth of the
    usual norm, above what counts as dead.

    **Arguments:**

    - `gains`: weights of the RMSNorms of the network, None for a network with LayerNorms.
    """
    width = weights.wo.shape[0]
    if gains is None:
        direction = torch.full((width,), width**-0.5, dtype=torch.float64)
    else:
        relative = torch.stack([gain.square() / gain.square().mean() for gain in gains])
        direction = torch.nn.functional.one_hot(relative.mean(0).argmin(), width).double()
    generator = torch.Generator().manual_seed(seed)
    read = torch.randn(weights.wo.shape[1], generator=generator, dtype=torch.float64)
    silent = replace(weights, wo=direction[:, None] * read)
    return _with_energy(silent, states, energy if gains is None else _RMS_ENERGY * energy)


def _with_energy(weights: HeadWeights, states: States, energy: float) -> HeadWeights:
    return replace(weights, wo=weights.wo * (energy / write_energy(weights, states)) ** 0.5)


def _diagonal(weights: HeadWeights, states: States, mass: float) -> HeadWeights:
    """Queries and keys are the same whitened principal components of x; their size gives the mass."""
    tokens = states.x[states.valid]
    mean = tokens.mean(0)
    centre = mean if weights.bq is not None else torch.zeros_like(mean)
    moments = (tokens - centre).T @ (tokens - centre) / len(tokens)
    numbers, vectors = torch.linalg.eigh(moments)
    width = len(weights.wq)
    kept = slice(len(numbers) - width, len(numbers))
    whitened = (vectors[:, kept] / numbers[kept].clamp(min=1e-12).sqrt()).T

    def sized(size: float) -> HeadWeights:
        wq = size * whitened
        bias: Float[Tensor, " head_dim"] | None = None if weights.bq is None else -wq @ centre
        return replace(weights, wq=wq, wk=wq, bq=bias, bk=bias)

    low, high = 0.0, 16.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        found = float(attend(sized(middle), states)[0].diagonal(dim1=1, dim2=2)[states.valid].mean())
        low, high = (middle, high) if found < mass else (low, middle)
    return sized(high)
