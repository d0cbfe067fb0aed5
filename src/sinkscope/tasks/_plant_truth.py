"""The truth of a planted head: what was asked for, what was reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._errors import OptionError
from ._plant_states import States, attend, column_mass
from ._plant_values import energies
from ._plant_weights import HeadWeights

PlantedMechanism = Literal["nop", "broadcast", "bias", "mixture", "inert", "uniform", "diagonal", "dead"]

SHARES = {"nop": (1.0, 0.0, 0.0), "bias": (0.0, 1.0, 0.0), "broadcast": (0.0, 0.0, 1.0)}
"""Silent, constant and content shares of the pure mechanisms."""

SINK_MASS = 0.3
"""Shares are those of the inputs whose sink has this mass."""

MASS_TOLERANCE = 0.15
SHARE_TOLERANCE = 0.2
ENERGY_FACTOR = 2.0
NOP_ENERGY = 0.08
FUNCTION = 1e-3
"""An inert head is one without which the last hidden states change by less than this share of their size."""

UNIFORM_ENTROPY = 0.99
DEAD_ENERGY = 1e-4
AT_SINK = 0.9
LEAST_SINKS = 8
LEAST_INPUTS = 24


@dataclass(frozen=True)
class Truth:
    """What one planted head is. All numbers are of held-out inputs.

    - `layer`, `head`, `mechanism`, `seed`: as asked. `sink`: role of the sink, None for a head without one.
    - `mass_asked`, `mass`: mean attention on the sink; with `parked` below 1, asked over the queries that park, and
      measured over all.
    - `parked`: share of the queries that are to park.
    - `at_sink`: share of inputs in which the key with the largest mass is of the role asked for.
    - `sink_inputs`: share of inputs in which that key has mass >= 0.3. The shares below are of these inputs.
    - `shares_asked`, `shares`: silent, constant, content (None without a sink, or with fewer than two such inputs).
    - `entropy_share`: mean row entropy over the log of the visible keys. `diagonal`: mean weight on itself.
    - `energy`: mean |u_j|^2 of tokens other than the sink, as a share of the layer's median head before.
    - `function`: relative RMS change of the model's last hidden states when the head's output is left
      out, of inert heads.
    - `output_change`: relative RMS change of the model's last hidden states by planting.
    - `n_inputs`: held-out inputs.
    """

    layer: int
    head: int
    mechanism: PlantedMechanism
    seed: int
    sink: str | None
    mass_asked: float | None
    mass: float
    parked: float
    at_sink: float | None
    sink_inputs: float
    shares_asked: tuple[float, float, float] | None
    shares: tuple[float, float, float] | None
    entropy_share: float
    diagonal: float
    energy: float
    function: float | None
    output_change: float
    n_inputs: int

    @property
    def faithful(self) -> bool:
        """Whether the head is what was asked: mass within 0.15 of it (where all queries park), a sink of the role asked
        for in 90% of inputs, 8 sink inputs or more. The energy of a sink that writes (constant + content) is within a
        factor 2 of what was asked, and content's share of it within 0.2; a nop's is at most 0.08. An inert head changes
        the last hidden states by less than 0.001. Uniform: 99% of the largest entropy; diagonal: mass within 0.15 on
        itself; dead: an energy below 1e-4 of the layer's.
        """
        if self.mechanism == "uniform":
            return self.entropy_share >= UNIFORM_ENTROPY
        if self.mechanism == "dead":
            return self.energy <= DEAD_ENERGY
        if self.mechanism == "diagonal":
            return self.diagonal >= (self.mass_asked or 0) - MASS_TOLERANCE
        assert self.mass_asked is not None
        if (self.at_sink or 0) < AT_SINK or round(self.sink_inputs * self.n_inputs) < LEAST_SINKS:
            return False
        if self.parked == 1 and abs(self.mass - self.mass_asked) > MASS_TOLERANCE:
            return False
        if self.mechanism == "inert":
            return self.function is not None and self.function < FUNCTION
        if self.shares is None or self.shares_asked is None:
            return False
        energy, asked = sum(self.shares[1:]), sum(self.shares_asked[1:])
        if self.mechanism == "nop":
            return energy <= NOP_ENERGY
        if not asked / ENERGY_FACTOR <= energy <= asked * ENERGY_FACTOR:
            return False
        return abs(self.shares[2] / energy - self.shares_asked[2] / asked) <= SHARE_TOLERANCE


def checked_shares(mechanism: str, shares: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
    """The shares of a mechanism. **Raises:** `OptionError` for a mechanism or shares that are none."""
    if mechanism not in get_args(PlantedMechanism):
        known = ", ".join(get_args(PlantedMechanism))
        raise OptionError(f"mechanism {mechanism!r}", f"one of {known}", "correct mechanism")
    if mechanism != "mixture":
        if shares is not None:
            raise OptionError(f"shares for {mechanism}", "shares with mechanism mixture only", "leave shares out")
        return SHARES.get(mechanism)
    if shares is None or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise OptionError(
            f"shares {shares} of a mixture", "silent, constant, content that add up to 1", "shares=(0.4, 0.3, 0.3)"
        )
    return shares


@dataclass(frozen=True)
class Measured:
    """Statistics of one head on some inputs, computed from weights and hidden states."""

    sink: Int[Tensor, " inputs"]
    mass: Float[Tensor, " inputs"]
    shares: tuple[float, float, float] | None
    entropy_share: float
    diagonal: float
    ordinary: float


def measured(weights: HeadWeights, states: States) -> Measured:
    """The sink of every input is the candidate key with the largest mass."""
    attention, values = attend(weights, states)
    visible = states.visible
    masses = column_mass(attention, visible).masked_fill(~states.candidates, -1)
    mass, sink = masses.max(1)
    chosen = torch.nonzero(mass >= SINK_MASS).flatten()
    found = None
    if len(chosen) > 1:
        found = energies(values[chosen], states.part(chosen), sink[chosen], weights.gram).shares
    rows = states.valid & (visible.sum(2) > 1)
    entropy = -(attention.clamp(min=1e-300).log() * attention).sum(2)[rows]
    largest = visible.sum(2)[rows].double().log()
    diagonal = attention.diagonal(dim1=1, dim2=2)[states.valid]
    ordinary = energies(values, states, sink, weights.gram).ordinary
    return Measured(sink, mass, found, float((entropy / largest).mean()), float(diagonal.mean()), ordinary)
