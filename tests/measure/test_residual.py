"""The residual stream as the model's own hidden states have it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sinkscope.measure import ResidualStream, find_stack
from sinkscope.models import Batch, Model
from tests.treat._models import BUILD, DECODERS, example, model

LAYERS = [0, 1, 2]


def seen(module: nn.Module, x: Tensor) -> tuple[dict[int, Tensor], ResidualStream, Any, Any]:
    wrapped = Model("tiny", module, "unknown")
    stack = find_stack(wrapped, Batch(0, ("one",), (x[:1],)), LAYERS)
    stream, read = ResidualStream(module, stack), dict[int, Tensor]()
    with stream.watching(lambda layer, hidden: read.update({layer: hidden.clone()})):
        out = wrapped.run(Batch(0, ("one", "two"), (x,)))
        final = stream.normed if stream.normed is not None else stream.written
    return read, stream, stack, (out, final)


@pytest.mark.parametrize("family", [name for name in BUILD if name != "timm-vit"])
def test_blocks_read_the_hidden_states_of_transformers(family: str) -> None:
    module, x = model(family), example(family)
    read, _, stack, (_, final) = seen(module, x)
    assert list(stack.blocks.values()) == LAYERS and stack.causal == (family in DECODERS)
    with torch.inference_mode():
        trunk = getattr(module, "base_model", module)
        told = trunk(x, output_hidden_states=True)
    for layer in LAYERS:
        torch.testing.assert_close(read[layer], told.hidden_states[layer])
    torch.testing.assert_close(final, told.last_hidden_state)


def test_tokens_may_come_first() -> None:
    torch.manual_seed(0)
    module = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(12, 3, 17), 3, nn.LayerNorm(12), enable_nested_tensor=False
    ).eval()
    x = torch.randn(5, 5, 12)  # as many tokens as inputs
    wrapped = Model("tiny", module, "unknown")
    stack = find_stack(wrapped, Batch(0, ("one",), (x[:, :1],)), LAYERS)
    assert stack.tokens_first
    stream, read = ResidualStream(module, stack), dict[int, Tensor]()
    with stream.watching(lambda layer, hidden: read.update({layer: hidden})):
        out = wrapped.run(Batch(0, tuple("abcde"), (x,)))
        torch.testing.assert_close(stream.normed, out.transpose(0, 1))
    torch.testing.assert_close(read[0], x.transpose(0, 1))
    assert stream.written is None  # nothing is kept behind the context


def test_hooks_are_gone_afterwards() -> None:
    module, x = model("vit"), example("vit")
    before = [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in module.modules()]
    seen(module, x)
    assert [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in module.modules()] == before
