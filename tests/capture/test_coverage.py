"""Attention that is not seen is a clear error or a named gap, never an empty result."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinkscope._errors import CaptureError
from sinkscope.capture import Calls, Coverage, Gap, capture
from tests.families._custom import HandAttention, HandModel
from tests.families._family import noise, randomised

WIDTH, TOKENS = 24, 19


def ran(module: nn.Module, *args: Tensor) -> Calls:
    with torch.inference_mode(), capture(module) as calls:
        module(*args)
    return calls


class LinearAttention(nn.Module):
    """Attention without a softmax: elu(q) + 1, elu(k) + 1 and a running sum."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.to_out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, 3, -1)).permute(2, 0, 3, 1, 4)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        out = q @ (k.mT @ v) / (q @ k.sum(2)[..., None])
        y: Tensor = self.to_out(out.transpose(1, 2).flatten(2))
        return y


class ScaledAttention(HandAttention):
    """Changes the weights after the softmax, out of place: what multiplies the values is no softmax."""

    def __init__(self) -> None:
        super().__init__("plain", None, 3)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        v = self.to_v(x).unflatten(-1, (3, -1)).transpose(1, 2)
        out = (self.weights(x, padding) * 1.5) @ v
        y: Tensor = self.to_out(out.transpose(1, 2).flatten(2))
        return y


@torch.library.custom_op("flash_attn_stub::fwd", mutates_args=())
def flash_attn_stub(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Stands in for an attention kernel from another package."""
    return F.scaled_dot_product_attention(q, k, v)


@torch.library.custom_op("_kernels_ab12::varlen_attention", mutates_args=())
def hub_stub(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Stands in for an attention kernel under a name made by a kernel hub."""
    return F.scaled_dot_product_attention(q, k, v)


class ForeignAttention(HandAttention):
    """Attention by a kernel that PyTorch's dispatcher knows by name only."""

    def __init__(self, kernel: str) -> None:
        super().__init__("imported", None, 3)
        self.kernel = {"flash": flash_attn_stub, "hub": hub_stub}[kernel]

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (3, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        y: Tensor = self.to_out(self.kernel(q, k, v).transpose(1, 2).flatten(2))
        return y


def test_a_model_without_attention_is_an_error() -> None:
    calls = ran(nn.Sequential(nn.Linear(WIDTH, 29), nn.GELU(), nn.Linear(29, WIDTH)), noise(2, TOKENS, WIDTH))
    assert calls == []
    assert calls.coverage == Coverage(0, 0, ())
    with pytest.raises(CaptureError) as error:
        calls.coverage.require()
    assert str(error.value) == (
        "no attention found in this model; expected a transformer whose attention runs through PyTorch's scaled dot "
        "product or a softmax; next: check that the reference names a transformer: sinkscope models"
    )


@pytest.mark.parametrize("attention", [LinearAttention, ScaledAttention])
def test_attention_without_a_softmax_over_its_values_is_an_error(attention: type[nn.Module]) -> None:
    calls = ran(randomised(nn.Sequential(attention())), noise(2, TOKENS, WIDTH))
    assert calls == []
    (gap,) = calls.coverage.gaps
    assert gap.module == "0"
    with pytest.raises(CaptureError) as error:
        calls.coverage.require()
    assert error.value.found == (
        "attention found in 1 modules but none could be captured (0: "
        f"{attention.__name__} ran without a scaled dot product or softmax that could be followed)"
    )
    assert "attn_implementation='sdpa' or 'eager'" in error.value.next_step


def test_half_captured_is_half_a_line_and_a_named_gap() -> None:
    calls = ran(randomised(nn.Sequential(HandModel("imported"), LinearAttention())), noise(2, TOKENS, WIDTH))
    assert len(calls) == 2
    assert (calls.coverage.found, calls.coverage.captured) == (3, 2)
    assert calls.coverage.gaps == (
        Gap("1", "LinearAttention ran without a scaled dot product or softmax that could be followed"),
    )
    assert calls.coverage.line == "captured 2 of 3 attention modules; 1 named gaps"
    calls.coverage.require()


@pytest.mark.parametrize(
    ("kernel", "operation"), [("flash", "flash_attn_stub::fwd"), ("hub", "_kernels_ab12::varlen_attention")]
)
def test_a_foreign_kernel_is_a_named_gap(kernel: str, operation: str) -> None:
    model = randomised(nn.ModuleDict({"a": ForeignAttention(kernel), "b": HandAttention("imported", None, 3)}))
    x = noise(2, TOKENS, WIDTH)
    with torch.inference_mode(), capture(model) as calls:
        model["b"](model["a"](x))  # type: ignore[index]
    assert [call.module for call in calls] == ["b"]
    (gap,) = calls.coverage.gaps
    assert gap == Gap("a", f"{operation} runs outside what can be read")

    calls = ran(randomised(ForeignAttention(kernel)), x)
    assert calls == []
    with pytest.raises(CaptureError, match=f"the model: {operation} runs outside what can be read"):
        calls.coverage.require()


_FLEX = """
import warnings
import torch
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from sinkscope.capture import capture

class FlexAttention(nn.Linear):
    def forward(self, x):
        q = super().forward(x).unflatten(-1, (3, -1)).transpose(1, 2)
        return flex_attention(q, q, q).transpose(1, 2).flatten(2)

warnings.simplefilter("ignore")
model, x = nn.Sequential(FlexAttention(48, 48)), torch.randn(2, 17, 48)
with torch.inference_mode():
    with capture(model) as calls:
        inside = model(x)
    assert torch.equal(inside, model(x))
assert calls == []
print(calls.coverage.gaps)
"""


def test_flex_attention_is_a_named_gap() -> None:
    """In a process of its own, where nothing has loaded the compiler before."""
    done = subprocess.run([sys.executable, "-c", _FLEX], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str((Gap("0", "flex_attention runs outside what can be read"),))


def test_attention_in_a_module_of_another_name_is_found_too() -> None:
    class Mixer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q = x.reshape(*x.shape[:2], 3, -1).transpose(1, 2)
            return F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2)

    calls = ran(nn.Sequential(Mixer(), Mixer()), noise(2, TOKENS, WIDTH))
    assert len(calls) == 2
    assert (calls.coverage.found, calls.coverage.captured, calls.coverage.gaps) == (2, 2, ())


def test_a_softmax_that_is_no_attention_is_not_taken_for_it() -> None:
    class Router(nn.Module):
        """A mixture of experts: softmax over experts, one per token, and a weighted sum of their outputs."""

        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(WIDTH, 5)
            self.experts = nn.Parameter(torch.ones(5, WIDTH, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            shares = self.gate(x).softmax(-1)
            return torch.einsum("bne,bnd,edf->bnf", shares, x, self.experts)

    calls = ran(randomised(nn.Sequential(Router(), HandAttention("imported", None, 3))), noise(2, TOKENS, WIDTH))
    assert [call.module for call in calls] == ["1"]


def test_require_passes_where_something_was_captured() -> None:
    calls = ran(randomised(HandModel("imported")), noise(2, TOKENS, WIDTH))
    calls.coverage.require()
    assert calls.coverage == Coverage(2, 2, ())
    assert calls.coverage.line == "captured 2 of 2 attention modules"
