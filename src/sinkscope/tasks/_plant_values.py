"""What the sink of a planted head hands out: silent, constant and content shares that are asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import least_squares
from torch import Tensor

from ._plant_sinks import Mark, with_one
from ._plant_states import States, projected
from ._plant_weights import HeadWeights

_FOLDS = 4
_WEIGHTS = (100.0, 10.0, 1e3, 1.0, 1e4)
_GOOD = 0.02
_RIDGE = 1e-4
_ORDINARY = 64
_LIKE_SINK = 6


@dataclass(frozen=True)
class Energies:
    """Energies of a head's writes, not divided: mean |u_j|^2 of ordinary tokens, mean |u_s|^2, and the mean of
    u_s . u_s' over pairs of different inputs."""

    ordinary: float
    sink: float
    constant: float

    @property
    def shares(self) -> tuple[float, float, float]:
        """Silent, constant, content (DESIGN: what a sink writes)."""
        if self.ordinary <= 0:
            return 1.0, 0.0, 0.0
        energy, constant = self.sink / self.ordinary, self.constant / self.ordinary
        return max(0.0, 1 - energy), constant, energy - constant


def energies(
    values: Float[Tensor, "inputs tokens head_dim"], states: States, sink: Int[Tensor, " inputs"], gram: Tensor
) -> Energies:
    """Energies of the values of a head."""
    writes = values @ _root(gram)
    every = torch.arange(len(writes))
    others = _others(states, sink)
    per_input = (writes.square().sum(-1) * others).sum(1) / others.sum(1).clamp(min=1)
    own = writes[every, sink]
    n, total = len(own), own.sum(0)
    constant = float((total.square().sum() - own.square().sum()) / (n * (n - 1))) if n > 1 else float("nan")
    return Energies(float(per_input.mean()), float(own.square().sum(1).mean()), constant)


def write_energy(weights: HeadWeights, states: States) -> float:
    """Mean |u_j|^2 over all tokens."""
    values = projected(states.x[states.valid], weights.wv, weights.bv)
    return float((values @ weights.gram * values).sum(1).mean())


def handing(
    weights: HeadWeights,
    states: States,
    mark: Mark,
    shares: tuple[float, float, float],
    energy: float,
    seed: int,
) -> tuple[HeadWeights, float]:
    """Values whose sink has these silent, constant and content shares, and the largest error of a share.

    With x~ = (x, 1), C_s and C_o the second moments of x~ at sinks and at other tokens, G = w C_s (w C_s + C_o)^-1 is
    the linear map that gives back sinks and takes other tokens to 0 (a Wiener filter). The new values are

        alpha W_V (1 - G) x~ + kappa (W_V G - m a^T) x~ + gamma c a^T x~

    with a^T x~ about 1 at sinks, m what makes the mean of the second part over sinks 0, and c the value of a random
    ordinary token less the mean: what ordinary tokens had, this input's content, and a constant. m, alpha, kappa and
    gamma are chosen for the energies asked for on inputs that G and a were not fitted on (4 folds); w is the first of a
    few that comes near enough, else the one that comes nearest.

    **Arguments:**

    - `energy`: mean |u_j|^2 of ordinary tokens to aim at.
    """
    bias = weights.bv is not None
    value = weights.wv if weights.bv is None else torch.cat([weights.wv, weights.bv[:, None]], 1)
    sample = _sample(with_one(states.x, bias), states, mark, seed)
    constant = _random_constant(value, sample, weights.gram, energy)
    folds = torch.arange(len(states.x)) % _FOLDS
    root = _root(weights.gram)
    best: tuple[float, float, Tensor, np.ndarray] | None = None
    for weight in _WEIGHTS:
        fitted = [_filters(sample, weight, folds != fold) for fold in range(_FOLDS)]
        mean = _mean(value, fitted, sample, folds)
        forms = [
            _forms(_maps(value, *fitted[fold], mean, constant), sample, root, folds == fold) for fold in range(_FOLDS)
        ]
        scales, error = _solved(np.mean(forms, axis=0) / energy, shares)
        if best is None or error < best[0] - 0.01:
            best = error, weight, mean, scales
        if best[0] < _GOOD:
            break
    assert best is not None
    error, weight, mean, scales = best
    whole = _maps(value, *_filters(sample, weight, folds >= 0), mean, constant)
    new = torch.einsum("a,ahw->hw", torch.from_numpy(scales), torch.stack(whole))
    if weights.bv is None:
        return replace(weights, wv=new), error
    return replace(weights, wv=new[:, :-1].contiguous(), bv=new[:, -1].contiguous()), error


@dataclass(frozen=True)
class _Sample:
    """x~ at the sink, at the tokens that look most like it, and at some ordinary tokens of every input."""

    sinks: Float[Tensor, "inputs width"]
    like: Float[Tensor, "inputs some width"]
    ordinary: Float[Tensor, "inputs others width"]


def _sample(x: Float[Tensor, "inputs tokens width"], states: States, mark: Mark, seed: int) -> _Sample:
    every = torch.arange(len(x))
    others = _others(states, mark.sink)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(others.shape, generator=generator).masked_fill(~others, -1)
    count = min(_ORDINARY, int(others.sum(1).min()))
    ordinary = drawn.topk(count, dim=1).indices
    marked = (x @ mark.direction).masked_fill(~states.valid, -torch.inf)
    marked[every, mark.sink] = torch.inf
    like = marked.topk(_LIKE_SINK if mark.searched else 1, dim=1).indices
    return _Sample(x[every, mark.sink], x[every[:, None], like], x[every[:, None], ordinary])


def _filters(
    sample: _Sample, weight: float, fit: Bool[Tensor, " inputs"]
) -> tuple[Float[Tensor, "width width"], Float[Tensor, " width"]]:
    """G and a."""
    sinks, like, ordinary = sample.sinks[fit], sample.like[fit].flatten(0, 1), sample.ordinary[fit].flatten(0, 1)
    mean = sinks.mean(0)
    at_sink, elsewhere = like.T @ like / len(like), ordinary.T @ ordinary / len(ordinary)
    moments = weight * at_sink + elsewhere
    moments += _RIDGE * elsewhere.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)
    back = torch.linalg.solve(moments, weight * at_sink).T
    mark = torch.linalg.solve(moments, weight * mean)
    return back, mark / (mark @ mean)


def _mean(
    value: Tensor, fitted: Sequence[tuple[Tensor, Tensor]], sample: _Sample, folds: Tensor
) -> Float[Tensor, " head_dim"]:
    """m: the mean of W_V G x~ over sinks that G was not fitted on, by that of a^T x~."""
    handed = torch.stack([value @ fitted[int(fold)][0] @ x for x, fold in zip(sample.sinks, folds, strict=True)])
    marked = torch.stack([fitted[int(fold)][1] @ x for x, fold in zip(sample.sinks, folds, strict=True)])
    return handed.mean(0) / marked.mean()


def _maps(
    value: Float[Tensor, "head_dim width"],
    back: Float[Tensor, "width width"],
    mark: Float[Tensor, " width"],
    mean: Float[Tensor, " head_dim"],
    constant: Float[Tensor, " head_dim"],
) -> tuple[Tensor, Tensor, Tensor]:
    return value - value @ back, value @ back - mean[:, None] * mark, constant[:, None] * mark


def _forms(
    maps: tuple[Tensor, Tensor, Tensor], sample: _Sample, root: Tensor, chosen: Bool[Tensor, " inputs"]
) -> Float[np.ndarray, "3 3 3"]:
    """Ordinary, sink and constant energy as quadratic forms of the three scales."""
    through = torch.stack([root.T @ part for part in maps]).transpose(1, 2)
    usual = sample.ordinary[chosen].flatten(0, 1) @ through
    own = sample.sinks[chosen] @ through
    n, total = own.shape[1], own.sum(1)
    at_sink = torch.einsum("anr,bnr->ab", own, own)
    pairs = (total @ total.T - at_sink) / (n * (n - 1))
    ordinary = torch.einsum("anr,bnr->ab", usual, usual) / usual.shape[1]
    return np.stack([ordinary.numpy(), at_sink.numpy() / n, pairs.numpy()])


def _solved(forms: np.ndarray, shares: Sequence[float]) -> tuple[np.ndarray, float]:
    """The three scales, and how far the energies they give are from those asked for."""
    _, constant, content = shares
    used = np.array([1.0, float(content > 0), float(constant > 0)])

    def off(scales: np.ndarray) -> np.ndarray:
        ordinary, sink, pairs = np.einsum("kab,a,b->k", forms, scales * used, scales * used)
        return np.array([ordinary - 1, pairs - constant * ordinary, sink - pairs - content * ordinary])

    found = [least_squares(off, start) for start in ([1.0, 1.0, 1.0], [1.0, 1.0, -1.0], [0.5, 3.0, 1.0])]
    best = min(found, key=lambda result: float(result.cost))
    return best.x * used, float(np.abs(off(best.x)).max())


def _random_constant(value: Tensor, sample: _Sample, gram: Tensor, energy: float) -> Float[Tensor, " head_dim"]:
    tokens = sample.ordinary.flatten(0, 1)
    constant: Tensor = value @ (sample.ordinary[0, 0] - tokens.mean(0))
    size = float(constant @ gram @ constant)
    return constant * math.sqrt(energy / size)


def _others(states: States, sink: Int[Tensor, " inputs"]) -> Bool[Tensor, "inputs tokens"]:
    others = states.valid.clone()
    others[torch.arange(len(others)), sink] = False
    return others


def _root(gram: Float[Tensor, "head_dim head_dim"]) -> Float[Tensor, "head_dim head_dim"]:
    """R with R R^T = M."""
    numbers, vectors = torch.linalg.eigh(gram)
    root: Tensor = vectors * numbers.clamp(min=0).sqrt()
    return root
