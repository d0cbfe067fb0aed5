"""Treated models in use: generation with a cache, padding, half precision, autocast, checkpointing, compilation."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch

import sinkscope
from sinkscope import treat
from sinkscope._errors import OptionError
from sinkscope.treat import Form, Gate, GlobalPathway, LearnedSink
from tests.treat._models import BUILD, DECODERS, VOCABULARY, example, learned, model, output, sinks

NEW = 7


def generated(made: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    out: torch.Tensor = made.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, **options)
    return out[:, ids.shape[1] :]


@pytest.mark.parametrize("family", DECODERS)
def test_generation_with_and_without_cache(family: str) -> None:
    plain, ids = model(family), example(family)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    treated = sinkscope.treat(plain, sinks(), probe=ids)
    assert torch.equal(generated(treated, ids, attention_mask=mask), generated(plain, ids, attention_mask=mask))
    learned(treated)
    cached = generated(treated, ids, attention_mask=mask)
    assert torch.equal(cached, generated(treated, ids, attention_mask=mask, use_cache=False))
    assert not torch.equal(cached, generated(plain, ids, attention_mask=mask))


def test_generation_with_a_static_cache() -> None:
    treated, ids = learned(sinkscope.treat(model("llama"), sinks(), probe=example("llama"))), example("llama")
    assert torch.equal(generated(treated, ids, cache_implementation="static"), generated(treated, ids))


def test_a_form_that_needs_past_inputs_says_so() -> None:
    treated, ids = sinkscope.treat(model("gpt2"), Form("gate-key")), example("gpt2")
    with pytest.raises(OptionError, match=rf"gate-key with 1 inputs and {ids.shape[1] + 1} keys; .*use_cache=False"):
        generated(treated, ids)
    assert generated(treated, ids, use_cache=False).shape == (2, NEW)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_of_bert_changes_nothing(implementation: str) -> None:
    plain, ids = model("bert"), example("bert")
    plain.set_attn_implementation(implementation)
    extra = [GlobalPathway(), Gate("elementwise")]
    treated = learned(sinkscope.treat(plain, [*sinks()[1:], *extra], probe=ids))
    padded = torch.cat([ids, torch.randint(3, VOCABULARY, (2, 5))], 1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(2, 5, dtype=torch.long)], 1)
    out = output(treated, padded, attention_mask=mask)[:, : ids.shape[1]]
    torch.testing.assert_close(out, output(treated, ids), rtol=1e-4, atol=1e-5)
    mask[1] = 1  # rows of one batch differ
    mixed = output(treated, padded, attention_mask=mask)
    torch.testing.assert_close(mixed[0, : ids.shape[1]], out[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[1:], output(treated, padded[1:]), rtol=1e-4, atol=1e-5)


def test_batches_agree_with_single_inputs() -> None:
    for family in BUILD:
        treated, x = learned(sinkscope.treat(model(family), sinks(), probe=example(family))), example(family, 3)
        each = torch.cat([output(treated, one) for one in torch.split(x, 1)])
        torch.testing.assert_close(output(treated, x), each, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", BUILD)
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    x = example(family)
    treated = learned(sinkscope.treat(model(family), sinks(), probe=x), 0.1)
    half = copy.deepcopy(treated).to(dtype)
    given = x.to(dtype) if x.is_floating_point() else x
    out, wanted = output(half, given), output(treated, x)
    assert out.dtype == dtype
    assert (out.float() - wanted).abs().max() < 0.1 * wanted.abs().max()
    fresh = sinkscope.treat(model(family).to(dtype), sinks(), probe=given)  # harmless there too
    assert {parameter.dtype for parameter in treat.added(fresh).values()} == {dtype}


def test_autocast() -> None:
    treated, x = learned(sinkscope.treat(model("vit"), sinks(), probe=example("vit"))), example("vit")
    with torch.autocast("cpu", torch.bfloat16):
        out = output(treated, x)
    wanted = output(treated, x)
    assert 0 < (out.float() - wanted).abs().max() < 0.1 * wanted.abs().max()
    out.float().sum().backward()
    assert all(parameter.grad is not None for parameter in treat.added(treated).values())


@pytest.mark.parametrize("family", ["llama", "bert", "timm-vit"])
def test_gradient_checkpointing(family: str) -> None:
    extra = [GlobalPathway()] if family != "llama" else []
    treated = learned(sinkscope.treat(model(family), [*sinks(), *extra], probe=example(family)))
    options = {"use_cache": False} if family == "llama" else {}
    gradients = []
    for checkpointed in (False, True):
        if checkpointed and family == "timm-vit":
            treated.set_grad_checkpointing()
        elif checkpointed:
            treated.activation_checkpointing_enable({"use_reentrant": False})
        treated.train().zero_grad()
        output(treated, example(family), **options).sin().sum().backward()
        found = {name: parameter.grad for name, parameter in treat.added(treated).items()}
        gradients.append({name: torch.clone(grad) for name, grad in found.items() if grad is not None})
    assert gradients[0].keys() == gradients[1].keys() == treat.added(treated).keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_only_what_was_added_is_trained() -> None:
    plain, x = model("clip-vision"), example("clip-vision")
    plain.requires_grad_(False)
    treated = sinkscope.treat(plain, sinks(), probe=x)
    goal = torch.zeros_like(output(plain, x))
    optimiser = torch.optim.Adam(treat.added(treated).values(), lr=3e-2)
    losses = []
    for _ in range(30):
        loss = (output(treated, x) - goal).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in treated.state_dict().items()
               if "sinkscope" not in name)  # fmt: skip
    assert all(bool(parameter.isfinite().all()) for parameter in treat.added(treated).values())


@pytest.mark.parametrize("family", ["llama", "timm-vit"])
def test_graph_is_captured_whole(family: str) -> None:
    treated, x = learned(sinkscope.treat(model(family), sinks(), probe=example(family))), example(family)
    torch._dynamo.reset()
    compiled = torch.compile(treated, backend="eager", fullgraph=True)
    torch.testing.assert_close(output(compiled, x), output(treated, x), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled() -> None:
    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("no C++ compiler, which torch.compile needs")
    treated = learned(sinkscope.treat(model("vit"), [Gate(), LearnedSink()], probe=example("vit")))
    block, x = treated.vit.layers[0], torch.randn(2, 7, 21)
    compiled: Any = torch.compile(block)
    torch._dynamo.reset()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), block(x), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("family", ["vit", "bert"])
def test_data_parallel_replicas(family: str) -> None:
    """What DistributedDataParallel does to a module: parameters by name, buffers broadcast, hooks on gradients."""
    treated, x = learned(sinkscope.treat(model(family), sinks(), probe=example(family))), example(family)
    parameters = dict(treated.named_parameters())
    out = torch.func.functional_call(treated, {name: p.detach().clone() for name, p in parameters.items()}, (x,))
    first = out[0] if not isinstance(out, torch.Tensor) else out
    assert torch.equal(first, output(treated, x))
