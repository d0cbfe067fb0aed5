"""Ways to run a module: PyTorch's own attention in all its forms, compiled, traced, training, decoding, windowed."""

from __future__ import annotations

import copy
import warnings
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sinkscope._errors import CaptureError
from sinkscope.capture import Calls, capture
from tests._agreement import captured
from tests.capture.test_families import assert_same_calls, close
from tests.families._custom import HandModel
from tests.families._family import noise, padded_mask, randomised
from tests.families.registry import FAMILIES

WIDTH, HEADS, TOKENS = 21, 3, 17


def attention(**options: bool) -> nn.MultiheadAttention:
    module = randomised(nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True, **options}))
    assert isinstance(module, nn.MultiheadAttention)
    return module


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("keys", [TOKENS, 11])
def test_cross_attention_is_labelled(need_weights: bool, by_name: bool, keys: int) -> None:
    """Also where both sequences have one length, which only the arguments tell."""
    module, x, other = attention(), noise(2, TOKENS, WIDTH), noise(2, keys, WIDTH, seed=31)
    with torch.inference_mode(), capture(module) as calls:
        if by_name:
            module(query=x, key=other, value=other, need_weights=need_weights)
        else:
            module(x, other, other, need_weights=need_weights)
    (call,) = calls
    assert call.kind == "cross"
    assert call.shape == (2, HEADS, TOKENS, keys)
    with torch.no_grad():
        exact = copy.deepcopy(module).double()
        arguments = (x.double(), other.double(), other.double())
        expected = exact(*arguments, need_weights=True, average_attn_weights=False)[1]
    close(call.attention_weights(torch.float64), expected, 5e-6)


def test_self_attention_by_name_is_self_attention() -> None:
    module, x = attention(), noise(2, TOKENS, WIDTH)
    with torch.inference_mode(), capture(module) as calls:
        module(query=x, key=x, value=x, need_weights=False)
    assert [call.kind for call in calls] == ["self"]


def test_positions_added_to_queries_and_keys_do_not_make_it_cross() -> None:
    """As in detection transformers: queries and keys are one tensor, values another."""
    module, x = attention(), noise(2, TOKENS, WIDTH)
    placed = x + noise(1, TOKENS, WIDTH, seed=41)
    with torch.inference_mode(), capture(module) as calls:
        module(placed, placed, x, need_weights=False)
    assert [call.kind for call in calls] == ["self"]


def test_decoder_layers_have_both_kinds() -> None:
    layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 29, batch_first=True)
    model = randomised(nn.TransformerDecoder(layer, 2))
    x = noise(2, TOKENS, WIDTH)
    with torch.inference_mode(), capture(model) as calls:
        model(x, noise(2, TOKENS, WIDTH, seed=31))
    assert [(call.kind, call.layer) for call in calls] == [("self", 0), ("cross", 0), ("self", 1), ("cross", 1)]


def test_an_unbatched_sequence_is_one_input() -> None:
    module, x = attention(), noise(1, TOKENS, WIDTH)[0]
    with torch.inference_mode(), capture(module) as calls:
        module(x, x, x, need_weights=False)
    assert [call.shape for call in calls] == [(1, HEADS, TOKENS, TOKENS)]
    assert calls[0].projection is not None


def test_as_many_inputs_as_tokens_never_mixes_the_two_up() -> None:
    """With the sequence first, (tokens, batch) and (batch, tokens) have one shape."""
    module, x = attention(batch_first=False), noise(TOKENS, TOKENS, WIDTH)
    with torch.inference_mode(), capture(module) as calls:
        module(x, x, x, need_weights=False)
    assert calls[0].shape == (TOKENS, HEADS, TOKENS, TOKENS)
    assert calls[0].hidden_norms is None
    expected = F.linear(x, module.in_proj_weight, module.in_proj_bias).chunk(3, -1)[2]
    close(calls[0].v.transpose(1, 2).flatten(2), expected.transpose(0, 1), 1e-6)


def test_the_fast_path_is_seen_through() -> None:
    """The encoder runs on the C++ fast path before and after, on the nested form of padded input too."""
    layer = nn.TransformerEncoderLayer(24, 4, 29, batch_first=True)
    model = randomised(nn.TransformerEncoder(layer, 2))
    x, valid = noise(3, TOKENS, 24), padded_mask(3, TOKENS, "right").bool()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.filterwarnings("ignore", "The PyTorch API of nested tensors", UserWarning)
        fast = model(x, src_key_padding_mask=~valid)
        with capture(model) as calls:
            plain = model(x, src_key_padding_mask=~valid)
        again = model(x, src_key_padding_mask=~valid)
    assert torch.equal(fast, again)
    close(plain[valid], fast[valid], 1e-5)
    assert [(call.kind, call.route, call.shape) for call in calls] == [("self", "fused", (3, 4, TOKENS, TOKENS))] * 2
    assert all(call.projection is not None for call in calls)


# -- compiled and traced --------------------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler() -> None:
    """Graphs of earlier tests would count towards the compiler's limit."""
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("form", ["function", "method"])
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_module_runs_uncompiled_inside(backend: str, form: str) -> None:
    model, x = randomised(HandModel("imported")), noise(2, 19, 24)
    with torch.inference_mode(), capture(model) as plain:
        expected = model(x)
    compiled = copy.deepcopy(model)
    if form == "function":
        compiled = cast(nn.Module, torch.compile(compiled, backend=backend))
    else:
        compiled.compile(backend=backend)
    with torch.inference_mode():
        before = compiled(x)
        with capture(compiled) as calls:
            inside = compiled(x)
        after = compiled(x)
    assert torch.equal(inside, expected)
    close(before, expected, 1e-5)
    assert torch.equal(before, after)
    prefix = "_orig_mod." if form == "function" else ""
    assert [call.module for call in calls] == [f"{prefix}blocks.0.attention", f"{prefix}blocks.1.attention"]
    for call, other in zip(calls, plain, strict=True):
        assert torch.equal(call.out, other.out)
        assert call.projection is not None and call.projection.layer_scale is not None
    assert calls.coverage.captured == calls.coverage.found == 2


def test_a_traced_module_is_captured_call_by_call() -> None:
    """A graph has no attention modules; the calls are there all the same."""
    model, x = randomised(HandModel("imported")), noise(2, 19, 24)
    exported = torch.export.export(model, (x,)).module()
    with torch.inference_mode(), capture(exported) as calls:
        exported(x)
    with torch.inference_mode(), capture(model) as plain:
        model(x)
    assert [(call.kind, call.layer) for call in calls] == [("self", 0), ("self", 1)]
    for call, other in zip(calls, plain, strict=True):
        assert torch.equal(call.out, other.out)
        assert call.projection is not None and other.projection is not None
        assert torch.equal(call.projection.weight, other.projection.weight)


# -- training -------------------------------------------------------------------------------------------------------


def test_gradients_flow_as_without_capture() -> None:
    model, x = randomised(HandModel("imported")), noise(2, 19, 24)
    gradients = []
    for watched in (False, True):
        model.zero_grad()
        if watched:
            with capture(model) as calls:
                model(x).square().mean().backward()
        else:
            model(x).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert len(calls) == 2
    tensors = [tensor for call in calls for tensor in (call.q, call.k, call.v, call.out, call.lse)]
    assert not any(tensor.requires_grad for tensor in tensors if tensor is not None)


def test_train_mode_without_dropout_is_captured() -> None:
    model, x = randomised(HandModel("imported")), noise(2, 19, 24)
    with torch.no_grad(), capture(model) as evaluated:
        model(x)
    model.train()
    with torch.no_grad(), capture(model) as trained:
        model(x)
    assert model.training
    assert_same_calls(trained, evaluated)


@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_dropout_in_train_mode_is_a_clear_error(need_weights: bool) -> None:
    """Weights that were dropped are not the model's attention."""
    module = randomised(nn.MultiheadAttention(WIDTH, HEADS, dropout=0.3, batch_first=True)).train()
    x = noise(2, TOKENS, WIDTH)
    with torch.no_grad(), capture(module) as calls:
        module(x, x, x, need_weights=need_weights)
    assert calls == []
    with pytest.raises(CaptureError, match="in eval mode"):
        calls.coverage.require()


# -- decoding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt-oss"])
def test_generation_is_a_prefill_and_labelled_steps(name: str) -> None:
    family = FAMILIES[name]
    model = family.build()
    ids = family.example(2).args[0]
    with torch.no_grad(), capture(model) as calls:
        generated = model.generate(  # type: ignore[operator]
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, min_new_tokens=3, do_sample=False
        )
    assert generated.shape == (2, ids.shape[1] + 3)
    prompt = ids.shape[1]
    prefill = [call for call in calls if call.kind == "self"]
    steps = [call for call in calls if call.kind == "decode"]
    assert [call.layer for call in prefill] == [0, 1]
    assert [call.shape[2:] for call in steps] == [(1, prompt + 1)] * 2 + [(1, prompt + 2)] * 2 or name == "gpt-oss"
    assert len(calls) == len(prefill) + len(steps) == 6
    assert len({call.forward for call in calls}) == 3


# -- windows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
def test_windowed_attention_is_captured_window_by_window(fused: bool) -> None:
    """timm's Swin: every window is a batch entry. Reference: the unfused float64 copy, weights by hook."""
    from timm.models.swin_transformer import SwinTransformer

    options: dict[str, Any] = {
        "img_size": 28,
        "patch_size": 2,
        "embed_dim": 12,
        "depths": (2,),
        "num_heads": (3,),
        "window_size": 7,
    }
    model = randomised(SwinTransformer(**options, num_classes=5))
    attentions = [module for module in model.modules() if type(module).__name__ == "WindowAttention"]
    expected: list[Tensor] = []
    exact = copy.deepcopy(model).double()
    for module in exact.modules():
        if type(module).__name__ == "WindowAttention":
            module.fused_attn = False  # type: ignore[assignment]
            dropout = module.get_submodule("attn_drop")
            dropout.register_forward_pre_hook(lambda _m, args: expected.append(args[0]))
    for module in attentions:
        module.fused_attn = fused  # type: ignore[assignment]
    x = noise(2, 3, 28, 28)
    with torch.inference_mode():
        exact(x.double())
        with capture(model) as calls:
            model(x)
    assert len(calls) == len(expected) == len(attentions) == 2
    for call, weights in zip(calls, expected, strict=True):
        assert call.shape == (2 * 4, 3, 49, 49)
        assert call.route == ("fused" if fused else "weights")
        close(call.attention_weights(torch.float64), weights.detach(), 1e-5)
        assert call.projection is not None
        assert call.hidden_norms is None


def test_two_towers_are_told_apart() -> None:
    """Only the tower that ran is captured; the other is named."""
    calls: Calls = captured(FAMILIES["open-clip-vision"], 2)
    assert {call.module.split(".")[1] for call in calls} == {"visual"}
    assert {gap.module for gap in calls.coverage.gaps} == {
        "clip.transformer.resblocks.0.attn",
        "clip.transformer.resblocks.1.attn",
    }
