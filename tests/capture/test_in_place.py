"""Once calls are settled, changing `call.out` in place changes what the model goes on with, on every route."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sinkscope.capture import AttentionCall, Calls, capture
from tests.explain.edits._cases import CASES
from tests.families._family import Example
from tests.families.registry import FAMILIES

MODELS = {name: (family.build, family.example) for name, family in FAMILIES.items()}
MODELS |= {name: (CASES[name].build, CASES[name].example) for name in ("off-by-one", "relu", "sequence-first")}


def outputs(result: Any) -> Tensor:
    """The first tensor that a model returns."""
    while not isinstance(result, Tensor):
        result = next(iter(result.values())) if isinstance(result, dict) else result[0]
    return result


def silenced(model: nn.Module, example: Example, names: set[str]) -> Tensor:
    """What the model returns with these parameters all zero."""
    model = copy.deepcopy(model)
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.zero_()
        return outputs(model(*example.args, **example.kwargs))


@pytest.mark.parametrize("name", MODELS)
def test_an_attention_output_of_zeros_is_as_a_projection_of_zeros(name: str) -> None:
    build, make = MODELS[name]
    model, example = build(), make(3)
    edits, projections, gaps = False, set[str](), 0

    def on_call(call: AttentionCall) -> None:
        nonlocal gaps
        if edits:
            call.out.zero_()
        elif call.projection is not None and call.projection.name is not None:
            projections.add(call.projection.name)
        else:
            gaps += 1

    with torch.inference_mode(), capture(model, on_call) as calls:
        plain = outputs(model(*example.args, **example.kwargs)).clone()
        calls.settle()
        assert torch.allclose(outputs(model(*example.args, **example.kwargs)), plain, rtol=1e-5, atol=1e-6)
        edits = True
        edited = outputs(model(*example.args, **example.kwargs)).clone()
    assert not torch.allclose(edited, plain, rtol=1e-2)
    if not gaps:
        assert torch.allclose(edited, silenced(model, example, projections), rtol=1e-4, atol=1e-5)


def test_a_pass_that_leaves_out_blocks_numbers_its_calls_as_the_whole_one() -> None:
    model, example = FAMILIES["vit"].build(), FAMILIES["vit"].example(2)
    seen: list[tuple[str, int, str]] = []
    block = model.get_submodule("layers.0")
    with (
        torch.inference_mode(),
        capture(model, lambda call: seen.append((call.kind, call.layer, call.module))) as calls,
    ):
        model(*example.args)
        calls.settle()
        block.forward = _left_out(calls)
        model(*example.args)
    assert seen == [
        ("self", 0, "layers.0.attention"),
        ("self", 1, "layers.1.attention"),
        ("self", 1, "layers.1.attention"),
    ]


def _left_out(calls: Calls) -> Any:
    def forward(x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        calls.begin_at({"self": 1})
        return x

    return forward
