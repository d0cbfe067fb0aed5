"""Half precision and float64 models: statistics accumulate in float32 or better.

Half precision is judged twice: against the reference made of the very numbers the kernel was given (what the statistics
add to the model's own rounding), and against the float64 model (what a user of the half-precision model should expect).
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from sinkscope.capture import capture
from tests._agreement import calls_of, difference, differences, measured
from tests._reference import COLUMNS, reference_columns
from tests.families.registry import FAMILIES
from tests.measure._calls import reference_of

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
NAMES = [
    "vit",
    "dinov2-registers",
    "bert",
    "gpt2",
    "llama-left",
    "mistral",
    "gemma2",
    "gpt-oss",
    "mha-padding",
    "mha-weights",
    "hand-plain",
]
WRITES = {"stable_rank"}
"""Made from the attention output, which the model has rounded to half precision."""
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def half(name: str, dtype: torch.dtype) -> tuple[torch.nn.Module, object]:
    family = FAMILIES[name]
    return copy.deepcopy(family.build()).to(dtype), family.example(3).to(dtype)


@pytest.mark.usefixtures("kernels")
@HALVES
@pytest.mark.parametrize("name", NAMES)
def test_the_statistics_add_nothing_to_the_rounding_of_the_model(name: str, dtype: torch.dtype) -> None:
    family = FAMILIES[name]
    model, example = copy.deepcopy(family.build()).to(dtype), family.example(3).to(dtype)
    calls = [call for call in calls_of(model, example) if call.kind == "self"]
    for call, layer in zip(calls, family.reference(3), strict=True):
        assert call.v.dtype == dtype
        found, expected = (
            measured(call, layer.valid),
            reference_columns(reference_of(call, layer.valid, normaliser=True)),
        )
        assert found.mass.dtype == torch.float32
        np.testing.assert_array_equal(found.sink.numpy(), expected["sink"])
        for column in COLUMNS:
            if column in ("hidden_norm", "hidden_norm_median", "virtual_mass"):
                continue  # not in the call's own numbers, or their sum
            bound = 6 * ROUNDING[dtype] if column in WRITES else 3e-5
            apart = difference(getattr(found, column).double().numpy(), expected[column], column)
            assert apart.relative <= bound, (column, apart)


@HALVES
@pytest.mark.parametrize("name", NAMES)
def test_masses_are_those_of_the_float64_model_to_the_rounding_of_its_weights(name: str, dtype: torch.dtype) -> None:
    family = FAMILIES[name]
    model, example = copy.deepcopy(family.build()).to(dtype), family.example(3).to(dtype)
    first = next(call for call in calls_of(model, example) if call.kind == "self")
    layer = family.reference(3)[0]
    found, expected = measured(first, layer.valid), reference_columns(layer)
    for column, factor in (
        ("received", 12),
        ("virtual_mass", 12),
        ("diagonal", 12),
        ("entropy", 24),
        ("hidden_norm_median", 24),
    ):
        apart = np.nanmax(np.abs(getattr(found, column).double().numpy() - expected[column]))
        scale = max(1.0, float(np.nanmax(np.abs(expected[column]))))
        assert apart <= factor * ROUNDING[dtype] * scale, (column, apart)


@HALVES
@pytest.mark.parametrize("name", ["vit", "llama-right", "gpt-oss", "mha"])
def test_half_precision_output_is_the_same_with_capture(name: str, dtype: torch.dtype) -> None:
    model, example = half(name, dtype)
    with torch.inference_mode():
        without = model(*example.args, **example.kwargs)  # type: ignore[attr-defined]
        with capture(model) as calls:
            inside = model(*example.args, **example.kwargs)  # type: ignore[attr-defined]
    assert calls
    pairs = zip(_values(without), _values(inside), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def _values(output: object) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    assert hasattr(output, "values")
    return [value for value in output.values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize(
    "name", ["vit", "dinov2", "gpt2", "mha-padding", "mha-bias-kv-zero", "hand-square-mask-mqa", "hand-query-mask"]
)
def test_float64_models_are_measured_in_float64(name: str) -> None:
    family = FAMILIES[name]
    model, example = copy.deepcopy(family.build()).double(), family.example(3).to(torch.float64)
    calls = [call for call in calls_of(model, example) if call.kind == "self"]
    for call, layer in zip(calls, family.reference(3), strict=True):
        found = measured(call, layer.valid)
        assert found.mass.dtype == torch.float64
        for column, apart in differences(found, layer).items():
            exact = 1e-7 if column in ("routed", "entropy_share") else 1e-10  # counts are float32 in these
            assert apart.relative <= exact, (column, apart)
