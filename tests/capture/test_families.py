"""What a capture hands out, call by call, against an independent program; it leaves the model's output alone."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor

from sinkscope.capture import Calls, capture
from tests._agreement import captured
from tests.families._family import Family
from tests.families.registry import FAMILIES

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
MODES = {"inference_mode": torch.inference_mode, "no_grad": torch.no_grad}


def tensors(output: Any) -> list[Tensor]:
    """All tensors of a model's output."""
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if hasattr(output, "values") else output if isinstance(output, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors(part)]


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("mode", MODES.values(), ids=list(MODES))
@every_family
def test_the_output_is_the_same_with_capture_and_without(
    family: Family, mode: type[AbstractContextManager[None]], batch: int
) -> None:
    model, example = family.build(), family.example(batch)
    with mode():
        without = tensors(model(*example.args, **example.kwargs))
        with capture(model) as calls:
            inside = tensors(model(*example.args, **example.kwargs))
        after = tensors(model(*example.args, **example.kwargs))
    assert len(calls) == len(family.kinds)
    assert without
    for a, b, c in zip(without, inside, after, strict=True):
        assert torch.equal(a, c)
        if family.bitwise:
            assert torch.equal(a, b)
        else:  # other kernels: the fast path is off inside
            assert (a - b).abs().max() <= 1e-5 * a.abs().max()


@every_family
def test_every_call_is_found_once_and_labelled(family: Family) -> None:
    calls = captured(family, 3)
    assert tuple(call.kind for call in calls) == family.kinds
    for kind in set(family.kinds):
        of_kind = [call for call in calls if call.kind == kind]
        assert [call.layer for call in of_kind] == list(range(len(of_kind)))
    assert {call.forward for call in calls} == {0}
    assert {call.route for call in calls if call.kind == "self"} == {family.route}
    found = len({call.module for call in calls})
    assert (calls.coverage.captured, len(calls)) == (found, len(family.kinds))


@every_family
def test_weights_values_and_outputs_are_those_of_the_reference(family: Family) -> None:
    layers = family.reference(3)
    calls = [call for call in captured(family, 3) if call.kind == "self"]
    assert len(calls) == len(layers)
    for call, layer in zip(calls, layers, strict=True):
        keys = call.v.shape[2]
        assert call.shape == (*layer.weights.shape[:3], keys)
        assert call.virtual_keys + call.extra_columns == layer.weights.shape[3] - layer.weights.shape[2]
        queries = (layer.valid & layer.visible.any(2))[:, None, :, None]
        tokens = torch.nn.functional.pad(layer.valid, (0, keys - layer.valid.shape[1]), value=True)[:, None, :, None]
        expected = layer.weights[..., :keys].masked_fill(~queries, 0)
        weights = call.attention_weights(torch.float64).masked_fill(~queries, 0)
        close(weights, expected, 5e-6)
        values = call.v.repeat_interleave(call.shape[1] // call.v.shape[1], 1)
        made = layer.values[:, :, :keys].masked_fill(~tokens, 0)
        close(values.masked_fill(~tokens, 0), made, 5e-6)
        close(call.out.masked_fill(~queries, 0), expected @ made, 5e-6)


@every_family
def test_the_log_normaliser_of_fused_attention_is_exact(family: Family) -> None:
    for call, layer in zip((c for c in captured(family, 3) if c.kind == "self"), family.reference(3), strict=True):
        if call.route == "weights":
            assert call.lse is None and call.q is None and call.k is None
            continue
        assert call.q is not None and call.k is not None and call.lse is not None
        groups = call.q.shape[1] // call.k.shape[1]
        scores = call.q.double() @ call.k.double().repeat_interleave(groups, 1).mT * call.scale
        scores = scores if call.mask is None else scores + call.mask.double()
        if call.causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
        sums = (scores - call.lse.double()[..., None]).exp().sum(-1)
        queries = (layer.valid & layer.visible.any(2))[:, None].expand_as(sums)
        close(sums[queries], torch.ones_like(sums[queries]), 5e-6)


@every_family
def test_the_projection_is_the_models_own_or_null_with_a_reason(family: Family) -> None:
    model = family.build()
    parameters = dict(model.named_parameters())
    calls = [call for call in captured(family, 3, model) if call.kind == "self"]
    for call, layer in zip(calls, family.reference(3), strict=True):
        if layer.projection is None:
            assert call.projection is None
            assert call.projection_gap
            continue
        assert call.projection is not None, call.projection_gap
        assert call.projection_gap is None
        assert torch.equal(call.projection.weight.double(), layer.projection.mT)
        assert call.projection.name is not None
        assert parameters[call.projection.name].numel() == layer.projection.numel()
        if layer.layer_scale is None:
            assert call.projection.layer_scale is None
        else:
            assert call.projection.layer_scale is not None
            assert torch.equal(call.projection.layer_scale.double(), layer.layer_scale)


@every_family
def test_hidden_norms_are_those_of_the_blocks_input(family: Family) -> None:
    for call, layer in zip((c for c in captured(family, 3) if c.kind == "self"), family.reference(3), strict=True):
        assert layer.hidden is not None and call.hidden_norms is not None
        expected = torch.linalg.vector_norm(layer.hidden, dim=-1)[layer.valid]
        assert ((call.hidden_norms[layer.valid] - expected).abs() <= 5e-6 * expected).all()


@every_family
def test_no_grad_captures_what_inference_mode_does(family: Family) -> None:
    model, example = family.build(), family.example(3)
    with torch.no_grad(), capture(model) as calls:
        model(*example.args, **example.kwargs)
    assert_same_calls(calls, captured(family, 3, model))


def assert_same_calls(some: Calls, others: Calls) -> None:
    """The same in every field; numbers to rounding, since a linear layer may pick another kernel in the other mode."""
    assert len(some) == len(others) > 0
    for a, b in zip(some, others, strict=True):
        assert (a.layer, a.module, a.block, a.kind, a.route, a.scale, a.causal, a.projection_gap) == (
            b.layer, b.module, b.block, b.kind, b.route, b.scale, b.causal, b.projection_gap
        )  # fmt: skip
        for name in ("q", "k", "v", "out", "lse", "weights", "mask", "visible", "hidden_norms"):
            one, other = getattr(a, name), getattr(b, name)
            assert (one is None) == (other is None), name
            if one is not None and other is not None:
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5, equal_nan=True, msg=name)
        assert (a.projection is None) == (b.projection is None)
        if a.projection is not None and b.projection is not None:
            assert torch.equal(a.projection.weight, b.projection.weight)
            assert (a.projection.layer_scale is None) == (b.projection.layer_scale is None)


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal to `tolerance` of the largest expected element."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()
