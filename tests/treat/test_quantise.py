"""Rounded weights and activations against integers, and what a massive activation does to them."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sinkscope
from sinkscope._errors import OptionError
from sinkscope.treat import Gate, PrefixKV, Quantise, anatomy_of
from tests.treat._models import BUILD, LAYERS, example, learned, model, output

GRANULARITIES = ("tensor", "channel", "token")


def layers(made: Any) -> list[nn.Module]:
    blocks = [site.block for site in anatomy_of(made).sites]
    return [
        module for block in blocks for module in block.modules() if type(module).__name__.endswith(("Linear", "Conv1D"))
    ]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_layer_multiplies_integers(family: str, granularity: Any, bits: int) -> None:
    plain, x = model(family), example(family)
    layer: Any = layers(plain)[-1]
    treated = sinkscope.treat(plain, Quantise(bits, granularity))
    rounded: Any = layers(treated)[-1]
    seen: dict[str, Tensor] = {}
    rounded.register_forward_hook(lambda _module, args, out: seen.update(x=args[0], out=out))
    with torch.no_grad():
        output(treated, x)
        weight = layer.weight if family == "gpt2" else layer.weight.T  # (inputs, outputs)
        top = 2 ** (bits - 1) - 1
        of_weight = weight.abs().amax() if granularity == "tensor" else weight.abs().amax(0)
        of_input = {
            "tensor": lambda a: a.amax(),
            "channel": lambda a: a.amax((0, 1)),
            "token": lambda a: a.amax(2, True),
        }
        scales = of_input[granularity](seen["x"].abs()) / top, of_weight / top
        integers = [torch.round(a / scale) for a, scale in zip((seen["x"], weight), scales, strict=True)]
        assert all(int(a.abs().max()) == top for a in integers)
        wanted = (integers[0].double() * scales[0]) @ (integers[1].double() * scales[1])
        wanted = wanted if layer.bias is None else wanted + layer.bias
    torch.testing.assert_close(seen["out"].double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", BUILD)
def test_every_family(family: str) -> None:
    plain, x = model(family).requires_grad_(False), example(family)
    before, state = output(plain, x), {name: value.clone() for name, value in plain.state_dict().items()}
    kinds = [type(layer) for layer in layers(plain)]
    errors = []
    for bits in (16, 8, 4):
        treated = sinkscope.treat(plain, Quantise(bits, "token"), inplace=True)
        assert all(type(layer).__name__.startswith("Quantised") for layer in layers(plain))
        errors.append(float((output(treated, x) - before).norm() / before.norm()))
        sinkscope.treat.undo(plain)
    assert errors[0] < 0.02 * errors[1] < 0.02 * errors[2] and 1e-3 < errors[1] < 0.2
    assert [type(layer) for layer in layers(plain)] == kinds and torch.equal(output(plain, x), before)
    assert all(torch.equal(value, state[name]) for name, value in plain.state_dict().items())
    per_block = {"timm-vit": 4, "gpt2": 4, "llama": 7, "mistral": 7, "qwen2": 7, "qwen3": 7}.get(family, 6)
    assert len(kinds) == LAYERS * per_block


def test_one_massive_activation_makes_all_others_coarse() -> None:
    """One number costs all tokens their resolution where the tensor has one scale, its own channel's where channels
    have their own, and nothing where tokens have."""
    torch.manual_seed(0)
    x = torch.randn(1, 13, 30)
    x[0, 0, 7] = 3000.0
    layer: Any = nn.Linear(30, 17, bias=False)
    wanted = layer.requires_grad_(False)(x)[:, 1:]
    errors = {}
    for granularity in GRANULARITIES:
        treated = sinkscope.treat(model("llama"), Quantise(8, granularity))  # type: ignore[arg-type]
        rounded: Any = layers(treated)[0]
        rounded.weight = layer.weight
        rounded.requires_grad_(False)
        found = rounded(x)[:, 1:]
        errors[granularity] = float((found - wanted).norm() / wanted.norm())
    assert errors["tensor"] > 0.9 > 0.5 > errors["channel"] > 0.1 > 0.02 > errors["token"]


def test_gradients_pass() -> None:
    x = example("llama")
    treated = sinkscope.treat(model("llama"), [PrefixKV(3), Quantise(8), Gate()], probe=x)
    plain = sinkscope.treat(model("llama"), [PrefixKV(3), Gate()], probe=x)
    grads = []
    for made in (learned(treated), learned(plain)):
        output(made, x).sin().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in sinkscope.treat.added(made).values() if p.grad is not None]))
    assert grads[0].shape == grads[1].shape
    assert torch.cosine_similarity(grads[0], grads[1], 0) > 0.8


def test_saved_pickled_and_captured(tmp_path: Any) -> None:
    for family in ("gpt2", "timm-vit"):
        plain, x = model(family), example(family)
        treated = sinkscope.treat(plain, [Quantise(6, "channel"), Gate(position="value")])
        sinkscope.treat.save(treated, tmp_path / family)
        again = sinkscope.treat.load(plain, tmp_path / family)
        assert sinkscope.treat.treatments_of(again)[0] == Quantise(6, "channel")
        file = io.BytesIO()
        torch.save(treated, file)
        file.seek(0)
        pickled = torch.load(file, weights_only=False)
        with torch.no_grad(), sinkscope.capture(again) as calls:
            seen = output(again, x)
        calls.coverage.require()
        assert torch.equal(seen, output(treated, x)) and torch.equal(output(pickled, x), seen)


def test_diagnosis(tmp_path: Any) -> None:
    plain, x = sinkscope.load(model("vit")), example("vit", 5)
    before = sinkscope.diagnose(plain, [x], tmp_path / "before")
    after = sinkscope.diagnose(sinkscope.treat(plain, Quantise(16, "token")), [x], tmp_path / "after")
    assert len(after.events) == len(before.events)
    assert abs(after.events["mass"] - before.events["mass"]).max() < 1e-2


def test_half_precision() -> None:
    x = example("dinov2").bfloat16()
    treated = sinkscope.treat(model("dinov2").bfloat16(), Quantise())
    assert output(treated, x).dtype == torch.bfloat16 and bool(output(treated, x).isfinite().all())


def test_zeros_stay_zeros() -> None:
    treated = sinkscope.treat(model("llama"), Quantise(8, "channel"))
    layer: Any = layers(treated)[0]
    assert torch.equal(layer(torch.zeros(2, 3, 30)), torch.zeros(2, 3, 60))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, "quantise: bits is 1; expected a whole number from 2 to 16"),
        ({"bits": 8.0}, "quantise: bits is 8.0; expected a whole number"),
        ({"granularity": "row"}, "quantise: granularity is 'row'; expected tensor, channel or token"),
    ],
)
def test_options_that_do_not_exist(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Quantise(**options)


def test_layers_of_other_kinds() -> None:
    class Lookup(nn.Linear):
        pass

    plain = model("llama")
    plain.model.layers[2].mlp.up_proj = Lookup(30, 37)
    with pytest.raises(
        OptionError, match=r"quantise: block 2 has mlp\.up_proj of Lookup; expected Linear, not rounded"
    ):
        sinkscope.treat(plain, Quantise(), inplace=True)
    assert not any(type(layer).__name__.startswith("Quantised") for layer in layers(plain))
    with pytest.raises(OptionError, match=r"block 0 has .* of QuantisedLinear; expected Linear, not rounded yet"):
        sinkscope.treat(sinkscope.treat(model("llama"), Quantise()), Quantise(4))
