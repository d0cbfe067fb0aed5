"""Every event column of every family against the float64 reference, by both forms of the second pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests._agreement import NUMBERS, POSITIONS, TOLERANCE, agreement, calls_of, difference, measured
from tests._reference import COLUMNS, reference_columns
from tests.families._family import Example, Family
from tests.families.registry import FAMILIES

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))


@pytest.mark.usefixtures("kernels")
@every_family
def test_every_column_is_that_of_the_reference(family: Family) -> None:
    for name, found in agreement(family, 3).items():
        assert found.relative <= TOLERANCE[name], (name, found)


@every_family
def test_an_input_measures_the_same_alone_and_in_a_batch(family: Family) -> None:
    model, example = family.build(), family.example(8)
    calls = calls_of(model, example)
    alone = [calls_of(model, example.row(b)) for b in range(8)]
    for number, call in enumerate(calls):
        if call.kind != "self":
            continue
        valid = family.reference(8)[call.layer].valid
        together = measured(call, valid)
        for b in range(8):
            single = measured(alone[b][number], valid[b : b + 1])
            for name in POSITIONS:
                assert torch.equal(getattr(single, name)[0], getattr(together, name)[b]), name
            for name in NUMBERS:
                one, other = (getattr(s, name).double().numpy() for s in (single, together))
                assert difference(one[0], other[b], name).relative <= TOLERANCE[name], name


@pytest.mark.parametrize("name", ["llama-left", "mistral-narrow", "gemma3"])
def test_left_padding_moves_the_sink_and_changes_nothing_else(name: str) -> None:
    """Position codes are relative: a padded row is the row without its padding, shifted."""
    family = FAMILIES[name]
    model, example = family.build(), family.example(8)
    padded = calls_of(model, example)
    for b in range(8):
        valid = example.valid["main"][b]
        padding = int((~valid).sum())
        plain = Example((example.args[0][b : b + 1, padding:],), {"use_cache": False})
        whole = torch.ones(1, int(valid.sum()), dtype=torch.bool)
        for call, short in zip(padded, calls_of(model, plain), strict=True):
            one, other = measured(call, example.valid["main"]), measured(short, whole)
            assert torch.equal(one.sink[b].clamp(min=padding - 1) - padding, other.sink[0])
            for column in COLUMNS:
                found, expected = (getattr(s, column).double().numpy() for s in (one, other))
                assert difference(found[b], expected[0], column).relative <= 1e-4, column


def test_the_families_exercise_what_they_are_meant_to() -> None:
    """Agreement on trivial values would prove little: sinks, near-sinks and non-sinks must all be there."""
    columns: dict[str, list[np.ndarray]] = {name: [] for name in (*COLUMNS, "sink")}
    for family in FAMILIES.values():
        for layer in family.reference(3):
            reference = reference_columns(layer)
            for name, values in columns.items():
                values.append(reference[name].ravel())
    seen = {name: np.concatenate(values) for name, values in columns.items()}
    assert np.nanmin(seen["mass"]) < 0.15 and np.nanmax(seen["mass"]) > 0.6
    assert np.nanmin(seen["routed"]) == 0 and np.nanmax(seen["routed"]) > 0.8
    assert np.nanmin(seen["value_ratio"]) < 0.6 and np.nanmax(seen["value_ratio"]) > 2
    assert np.nanmin(seen["update_ratio"]) < 0.6 and np.nanmax(seen["update_ratio"]) > 2
    assert np.nanmin(seen["stable_rank"]) < 1.05 and np.nanmax(seen["stable_rank"]) > 2
    assert np.nanmax(seen["virtual_mass"]) > 0.1
    assert np.isnan(seen["update_ratio"]).any()
    assert len(set(seen["sink"])) > 15 and -1 in seen["sink"]
