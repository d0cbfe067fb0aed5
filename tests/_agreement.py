"""sinkscope's statistics of a family beside the reference, and how far apart the two are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sinkscope.capture import AttentionCall, Calls, capture
from sinkscope.measure import CallStatistics, measure_call, write_geometry
from tests._reference import BESIDE, COLUMNS, ReferenceLayer, reference_columns
from tests.families._family import Example, Family

POSITIONS = ("sink", "top_sinks")
"""Columns that must be equal."""
NUMBERS = (*COLUMNS, *BESIDE)
FLOOR = 1e-2
"""Differences are taken relative to the reference, or to this where the reference is smaller."""
TOLERANCE: dict[str, float] = {
    "mass": 1e-5,
    "routed": 1e-7,
    "min_mass": 2e-5,
    "value_ratio": 5e-6,
    "update_ratio": 5e-6,
    "stable_rank": 5e-6,
    "diagonal": 1e-5,
    "entropy": 5e-6,
    "entropy_share": 5e-6,
    "hidden_norm": 5e-6,
    "hidden_norm_median": 5e-6,
    "virtual_mass": 2e-5,
    "energy": 5e-6,
    "sink_energy": 1e-5,
    "ordinary_energy": 1e-5,
    "sink_value": 1e-5,
    "received": 5e-5,
    "top_masses": 1e-5,
}
"""Largest relative difference of a float32 model against the float64 reference, per column. `routed` counts, so that it
is exact. A score is off by 1e-7 of the largest summand of q.k, and its exponential by the same in relative terms: small
weights in `received` feel it most."""


@dataclass(frozen=True)
class Difference:
    """Largest absolute and relative difference of a column."""

    absolute: float = 0.0
    relative: float = 0.0

    def __or__(self, other: Difference) -> Difference:
        return Difference(max(self.absolute, other.absolute), max(self.relative, other.relative))


def captured(family: Family, batch: int, model: nn.Module | None = None) -> Calls:
    """All calls of the family's example under inference mode."""
    return calls_of(family.build() if model is None else model, family.example(batch))


def calls_of(model: nn.Module, example: Example) -> Calls:
    """All calls of one forward pass under inference mode."""
    with torch.inference_mode(), capture(model) as calls:
        model(*example.args, **example.kwargs)
    return calls


def measured(call: AttentionCall, valid: Tensor) -> CallStatistics:
    """The statistics of a call, those of the write too where its projection was found."""
    dtype = torch.promote_types(call.v.dtype, torch.float32)
    geometry = None if call.projection is None else write_geometry(call.projection, call.shape[1], dtype)
    with torch.inference_mode():
        return measure_call(call, valid, geometry)


def differences(statistics: CallStatistics, layer: ReferenceLayer) -> dict[str, Difference]:
    """Per column of numbers. Positions, and where a number is not defined, must agree exactly."""
    reference = reference_columns(layer)
    for name in POSITIONS:
        np.testing.assert_array_equal(_array(statistics, name), reference[name], err_msg=name)
    found = {name: _array(statistics, name) for name in NUMBERS}
    for arrays in (found, reference):
        arrays["sink_value"][reference["sink"] < 0] = np.nan  # of no meaning without a sink
    return {name: difference(found[name], reference[name], name) for name in NUMBERS}


def difference(found: np.ndarray, expected: np.ndarray, name: str = "") -> Difference:
    """Largest differences of two arrays that are NaN at the same places."""
    assert found.shape == expected.shape, (name, found.shape, expected.shape)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected), err_msg=f"{name}: where it is defined")
    apart = np.abs(found - expected)
    if np.isnan(apart).all():
        return Difference()
    of = np.linalg.norm(expected, axis=-1, keepdims=True) if name == "sink_value" else np.abs(expected)
    relative = apart / np.maximum(of, FLOOR)
    return Difference(float(np.nanmax(apart)), float(np.nanmax(relative)))


def agreement(family: Family, batch: int) -> dict[str, Difference]:
    """Largest differences over the family's self-attention layers."""
    calls = [call for call in captured(family, batch) if call.kind == "self"]
    streams, layers = family.example(batch).valid, family.reference(batch)
    assert len(calls) == len(layers)
    worst = dict.fromkeys(NUMBERS, Difference())
    for call, layer in zip(calls, layers, strict=True):
        assert any(torch.equal(valid, layer.valid) for valid in streams.values())
        for name, found in differences(measured(call, layer.valid), layer).items():
            worst[name] |= found
    return worst


def _array(statistics: CallStatistics, name: str) -> np.ndarray:
    values: Tensor = getattr(statistics, name)
    return np.array(values.double().cpu().numpy())
