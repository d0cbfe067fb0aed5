"""The output projection: found where a head's write is linear in its output, else null with a reason. Never wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinkscope.capture import AttentionCall, capture
from tests.families._family import noise, randomised

WIDTH, HEADS, TOKENS = 21, 3, 13


Tail = Callable[["TailAttention", Tensor, Tensor], Tensor]


class TailAttention(nn.Module):
    """Self-attention with everything after the fused kernel left to `tail(module, out, x)`."""

    def __init__(self, tail: Tail) -> None:
        super().__init__()
        self.tail = tail
        self.to_qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.to_out = nn.Linear(WIDTH, WIDTH)
        self.other = nn.Linear(WIDTH, WIDTH)
        self.down, self.up = nn.Linear(WIDTH, 5, bias=False), nn.Linear(5, WIDTH, bias=False)
        self.bias = nn.Parameter(torch.ones(WIDTH))
        self.gamma = nn.Parameter(torch.ones(WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.tail(self, F.scaled_dot_product_attention(q, k, v), x)


class TailBlock(nn.Module):
    """The residual stream around it."""

    def __init__(self, tail: Tail) -> None:
        super().__init__()
        self.attention = TailAttention(tail)
        self.mlp = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        y: Tensor = x + self.mlp(x)
        return y


def call_of(tail: Tail, batch: int, grad: bool) -> tuple[nn.Module, AttentionCall]:
    """The model, and the call of its first block."""
    model = randomised(nn.Sequential(TailBlock(tail), TailBlock(tail)))
    with torch.inference_mode() if not grad else torch.enable_grad(), capture(model) as calls:
        model(noise(batch, TOKENS, WIDTH))
    assert len(calls) == 2
    return model, calls[0]


def joined(out: Tensor) -> Tensor:
    """(batch, heads, tokens, dim) to (batch, tokens, heads * dim)."""
    return out.transpose(1, 2).flatten(2)


def separate_bias(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    return (F.linear(joined(out), m.to_out.weight) + m.bias) * m.gamma


def sequence_first(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    """A projection that takes the tokens first, and a layer scale."""
    y: Tensor = m.to_out(out.permute(2, 0, 1, 3).flatten(2)) * m.gamma
    return y.transpose(0, 1)


def transposed_input(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    """The linear layer gets a tensor that is not contiguous, so that PyTorch adds its bias separately."""
    y: Tensor = m.to_out(joined(out).transpose(0, 1).contiguous().transpose(0, 1)) * m.gamma
    return y


def split_heads(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    """Contiguous before it is joined, so that the projection reads a copy."""
    y: Tensor = m.gamma * m.to_out(joined(out.contiguous()))
    return y


def in_place_scale(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    y: Tensor = m.to_out(joined(out)).mul_(m.gamma)
    return y


def viewed_scale(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    y: Tensor = m.to_out(joined(out)) * m.gamma.view(1, 1, -1)
    return y


def multiply(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    return torch.multiply(m.to_out(joined(out)), m.gamma)


def contracted(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    """One einsum over heads and dimensions, which PyTorch turns into a product over dimensions and heads."""
    return torch.einsum("bhnd,ohd->bno", out, m.to_out.weight.reshape(WIDTH, HEADS, -1))


def half_then_scale(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    y: Tensor = m.to_out(joined(out)) * 0.5 * m.gamma
    return y


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "grad"])
@pytest.mark.parametrize("batch", [1, 3, HEADS * 7])
@pytest.mark.parametrize(
    "tail",
    [
        separate_bias,
        sequence_first,
        transposed_input,
        split_heads,
        in_place_scale,
        viewed_scale,
        multiply,
        half_then_scale,
    ],
)
def test_found_with_its_layer_scale(tail: Tail, batch: int, grad: bool) -> None:
    model, call = call_of(tail, batch, grad)
    assert call.projection is not None, call.projection_gap
    assert call.projection.name == "0.attention.to_out.weight"
    assert torch.equal(call.projection.weight, model.get_parameter("0.attention.to_out.weight").mT)
    assert call.projection.layer_scale is not None
    assert torch.equal(call.projection.layer_scale, model.get_parameter("0.attention.gamma"))


def added_scale(m: TailAttention, out: Tensor, x: Tensor) -> Tensor:
    return torch.addcmul(x, m.to_out(joined(out)), m.gamma)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_layer_scale_that_is_fused_with_the_residual_is_seen(batch: int) -> None:
    model, call = call_of(added_scale, batch, grad=False)
    assert call.projection is not None and call.projection.layer_scale is not None
    assert torch.equal(call.projection.layer_scale, model.get_parameter("0.attention.gamma"))


# -- no projection of the heads' outputs ----------------------------------------------------------------------------


def gated(m: TailAttention, out: Tensor, x: Tensor) -> Tensor:
    y: Tensor = m.to_out(joined(out) * m.other(x).sigmoid())
    return y


def gated_in_place(m: TailAttention, out: Tensor, x: Tensor) -> Tensor:
    y: Tensor = m.to_out(joined(out).mul_(m.other(x).sigmoid()))
    return y


def gated_into_itself(m: TailAttention, out: Tensor, x: Tensor) -> Tensor:
    flat = joined(out)
    y: Tensor = m.to_out(torch.mul(flat, m.other(x).sigmoid(), out=flat))
    return y


def gated_copy(m: TailAttention, out: Tensor, x: Tensor) -> Tensor:
    flat = joined(out).clone()
    flat *= m.other(x).sigmoid()
    y: Tensor = m.to_out(flat)
    return y


def gated_by_itself(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    """The gate is computed from the output: its matrix product is not the projection."""
    y: Tensor = m.to_out(joined(out) * m.other(joined(out)).sigmoid())
    return y


def attention_on_attention(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    y: Tensor = m.to_out(joined(out)) * m.other(joined(out)).sigmoid()
    return y


def low_rank(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    y: Tensor = m.up(m.down(joined(out)))
    return y


def adapted(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    """A low-rank adapter beside the projection."""
    y: Tensor = m.to_out(joined(out)) + m.up(m.down(joined(out)))
    return y


def interleaved(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    """Columns run over dimensions first, heads second."""
    y: Tensor = m.to_out(out.permute(0, 2, 3, 1).flatten(2))
    return y


def heads_before_tokens(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    """The joined axes mix tokens and heads: rows are no tokens."""
    y: Tensor = m.to_out(out.flatten(1, 2).reshape(len(out), TOKENS, WIDTH))
    return y


def normed(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    y: Tensor = m.to_out(m.norm(joined(out)))
    return y


def convolved(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    y: Tensor = m.conv(joined(out).mT).mT
    return y


def with_local_values(m: TailAttention, out: Tensor, x: Tensor) -> Tensor:
    flat = joined(out)
    flat += m.other(x)
    y: Tensor = m.to_out(flat)
    return y


def overwritten(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    flat = joined(out)
    flat[:, 0] = 0
    y: Tensor = m.to_out(flat)
    return y


def modulated(m: TailAttention, out: Tensor, x: Tensor) -> Tensor:
    """A factor per input, as diffusion transformers have it: no layer scale, whatever the batch."""
    y: Tensor = m.to_out(joined(out)) * m.other(x.mean(1, keepdim=True))
    return y


def modulated_per_token(m: TailAttention, out: Tensor, x: Tensor) -> Tensor:
    y: Tensor = m.to_out(joined(out)) * m.other(x)
    return y


def one_matrix_per_input(m: TailAttention, out: Tensor, x: Tensor) -> Tensor:
    """Fast weights: the matrix depends on the input."""
    return torch.bmm(joined(out), m.to_out.weight * x.mean((1, 2))[:, None, None])


def read_before(m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    """Something else reads the output first, and adds to what the projection makes."""
    y: Tensor = joined(out).sigmoid() + m.to_out(joined(out))
    return y


def no_projection(_m: TailAttention, out: Tensor, _x: Tensor) -> Tensor:
    return joined(out)


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "grad"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (gated, "goes through aten.mul before a projection"),
        (gated_in_place, "changed in place by aten.mul"),
        (gated_copy, "changed in place by aten.mul"),
        (gated_by_itself, "aten.sigmoid follows the projection inside the attention module"),
        (attention_on_attention, "two matrix products"),
        (low_rank, "aten.mm follows the projection inside the attention module"),
        (adapted, "two matrix products"),
        (interleaved, "changed before the projection"),
        (heads_before_tokens, "changed before the projection"),
        (normed, "goes through aten.native_layer_norm before a projection"),
        (convolved, "goes through aten.convolution before a projection"),
        (with_local_values, "changed in place by aten.add"),
        (overwritten, "changed in place by aten."),
        (modulated, "multiplied by a factor that is no parameter"),
        (modulated_per_token, "multiplied by a factor that is no parameter"),
        (no_projection, "goes through aten.add before a projection"),
        (contracted, "goes through aten.bmm before a projection"),
        (one_matrix_per_input, "goes through aten.bmm before a projection"),
        (read_before, "goes through aten.sigmoid before a projection"),
    ],
)
def test_not_found_and_the_reason_says_why(tail: Tail, reason: str, batch: int, grad: bool) -> None:
    _, call = call_of(tail, batch, grad)
    assert call.projection is None
    assert call.projection_gap is not None and reason in call.projection_gap


def test_an_output_argument_that_is_the_attention_output_is_a_change() -> None:
    """PyTorch forbids out= where gradients flow, so that this is a case of inference alone."""
    for batch in (1, 3):
        _, call = call_of(gated_into_itself, batch, grad=False)
        assert call.projection is None
        assert call.projection_gap == "the attention output is changed in place by aten.mul"
