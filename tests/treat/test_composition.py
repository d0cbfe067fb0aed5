"""One treated attention against its definition, written out in float64: all treatments at once, in their order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sinkscope
from sinkscope.treat import AttentionBias, Gate, HeadNorm, KeyBias, LearnedSink, Treatment, anatomy_of
from tests.treat._models import example, learned, model, output

HEADS = {"vit": (3, 3, 7), "bert": (3, 3, 10), "llama": (6, 3, 10), "gpt2": (3, 3, 10), "timm-vit": (3, 3, 7)}
"""Heads, key-value heads and width of a head."""


def heads_of(x: Tensor, heads: int) -> Tensor:
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def projected(family: str, attention: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, those of llama rotated."""
    heads, kv_heads, _ = HEADS[family]
    if family == "gpt2":
        made = (x @ attention.c_attn.weight + attention.c_attn.bias).chunk(3, -1)
    elif family == "timm-vit":
        made = (x @ attention.qkv.weight.T + attention.qkv.bias).chunk(3, -1)
    else:
        names = ("query", "key", "value") if family == "bert" else ("q_proj", "k_proj", "v_proj")
        layers = [getattr(attention, name) for name in names]
        made = tuple(nn.functional.linear(x, layer.weight, layer.bias) for layer in layers)
    q, k, v = (heads_of(part, n) for part, n in zip(made, (heads, kv_heads, kv_heads), strict=True))
    if family == "llama":
        half = torch.arange(0, q.shape[-1], 2, dtype=torch.float64)
        angles = torch.arange(q.shape[2])[:, None] * 10000.0 ** (-half / q.shape[-1])
        cos, sin = torch.cos(angles).repeat(1, 2), torch.sin(angles).repeat(1, 2)

        def turned(z: Tensor) -> Tensor:
            left, right = z.chunk(2, -1)
            return z * cos + torch.cat([-right, left], -1) * sin

        q, k = turned(q), turned(k)
    return q, k, v


def gate_of(part: Any, x: Tensor) -> Any:
    """(batch, heads, tokens, 1 or dim)"""
    weight, bias = part.learned["gate_weight"], part.learned["gate_bias"]
    logits = torch.einsum("bnd,hwd->bhnw", x, weight) + bias[:, None]
    return torch.sigmoid(logits) / part.start


def expected(family: str, attention: Any, x: Tensor, form: str) -> Any:
    """Head outputs behind all treatments, concatenated."""
    heads, kv_heads, dim = HEADS[family]
    parts = attention.sinkscope
    q, k, v = projected(family, attention, x)
    v = v * gate_of(parts.values, x)
    k, v = (z.repeat_interleave(heads // kv_heads, 1) for z in (k, v))
    scores = q @ k.mT * dim**-0.5
    if family in ("llama", "gpt2"):
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    column = parts.form.column
    extra = (column.unit + torch.log(torch.expm1(column.root**2)))[:, None].expand(scores.shape[:3])
    value = torch.zeros(heads, dim, dtype=x.dtype)
    if form != "learned-sink":
        key = parts.form.learned["key"].repeat_interleave(heads // kv_heads, 0)
        extra = extra + torch.einsum("bhnd,hd->bhn", q, key) * dim**-0.5
    if form == "attention-bias":
        value = parts.form.learned["value"].repeat_interleave(heads // kv_heads, 0)
    weights = torch.cat([scores, extra[..., None]], -1).softmax(-1)
    out = weights[..., :-1] @ v + weights[..., -1:] * value[:, None]
    normed = out / (out.square().mean(-1, keepdim=True) + 1e-6).sqrt() * parts.norm.gain
    out = out + parts.norm.mix[:, None, None] * (normed - out)
    return (out * gate_of(parts.gate, x)).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("form", [LearnedSink(), AttentionBias(), KeyBias()], ids=lambda form: form.name)
@pytest.mark.parametrize("kind", ["headwise", "elementwise"])
@pytest.mark.parametrize("family", HEADS)
def test_composition(family: str, kind: Any, form: Treatment) -> None:
    x = example(family)
    x = x.double() if x.is_floating_point() else x
    plain = model(family).double()
    treatments = [Gate(kind), HeadNorm(), form, Gate(kind, position="value")]  # their order in the list is no matter
    treated = learned(sinkscope.treat(plain, treatments, probe=x), 0.7)
    site = anatomy_of(treated).sites[1]
    seen: dict[str, Tensor] = {}

    def note_input(_module: Any, args: Any, kwargs: Any) -> None:
        seen["x"] = args[0] if args else kwargs["hidden_states"]

    def note_output(_module: Any, args: Any) -> None:
        seen["out"] = args[0]

    site.attention.register_forward_pre_hook(note_input, with_kwargs=True)
    site.projection.register_forward_pre_hook(note_output)
    with torch.no_grad():
        output(treated, x)
        wanted = expected(family, site.attention, seen["x"], form.name)
    atol = 1e-6 if family == "llama" else 1e-9  # transformers rotates by angles in float32
    torch.testing.assert_close(seen["out"], wanted, rtol=1e-6, atol=atol)


def test_gate_is_the_same_as_scaling_the_projection() -> None:
    """A constant gate of 2 sigmoid(1) on one head is a factor on that head's columns of the output projection."""
    plain, x = model("dinov2"), example("dinov2")
    treated = sinkscope.treat(plain, Gate(input_dependent=False, layers=(1,)))
    factor = 2 * torch.sigmoid(torch.tensor(1.0))
    with torch.no_grad():
        treated.encoder.layer[1].attention.sinkscope.gate.learned["gate_bias"][2] = 1.0
        plain.encoder.layer[1].attention.o_proj.weight[:, 14:21] *= factor
    torch.testing.assert_close(output(treated, x), output(plain, x), rtol=1e-4, atol=1e-5)


def test_a_sink_with_all_attention_silences_the_head() -> None:
    plain, x = model("vit"), example("vit")
    treated = sinkscope.treat(plain, LearnedSink(start=0.0, layers=(0,)))
    with torch.no_grad():
        treated.vit.layers[0].attention.sinkscope.form.sink[1] = 1e4
        plain.vit.layers[0].attention.o_proj.weight[:, 7:14] = 0
        treated.vit.layers[0].attention.sinkscope.form.sink[[0, 2]] = -1e4
    torch.testing.assert_close(output(treated, x), output(plain, x), rtol=1e-4, atol=1e-5)
