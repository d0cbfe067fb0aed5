"""Learned key-values: inert at the start, tokens without positions when they weigh as much as others."""

from __future__ import annotations

from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sinkscope
from sinkscope import treat
from sinkscope._errors import OptionError
from sinkscope.attention import Attend
from sinkscope.treat import Gate, LearnedSink, PrefixKV
from sinkscope.treat._prefix import PrefixSoftmax
from tests.treat._models import DECODERS, LAYERS, TOKENS, example, learned, model, output

NEW = 7


def strong(made: Any) -> Any:
    """Prefixes that get much attention."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in treat.added(made).items():
            parameter.copy_(torch.full_like(parameter, 1.5) if name.endswith("root") else torch.randn_like(parameter))
    return made


@pytest.mark.parametrize("family", [*DECODERS, "bert", "timm-vit"])
def test_outputs_are_unchanged_and_gradients_alive(family: str) -> None:
    plain, x = model(family), example(family)
    treated = sinkscope.treat(plain, PrefixKV(3), probe=example(family, seed=1))
    before, after = output(plain, x), output(treated, x)
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    after.sin().sum().backward()
    added = treat.added(treated)
    assert len(added) == 3 * LAYERS
    for name, parameter in added.items():
        least = 1e-6 if name.endswith("root") else 1e-10
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > least, name
    assert (output(strong(treated), x) - before).abs().max() > 1e-2 * before.abs().max()
    treat.undo(treated)
    assert torch.equal(output(treated, x), before)


def reference(call: Attend, key: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    """Keys and values in front of the others, by the plain definition."""
    groups = call.q.shape[1] // call.k.shape[1]
    keys, values = (
        torch.cat([more.expand(len(call.q), -1, -1, -1), own], 2).repeat_interleave(groups, 1)
        for more, own in ((key, call.k), (value, call.v))
    )
    scores = call.q @ keys.mT * call.scale
    scores[..., : key.shape[1]] += weight[:, None, None]
    shown = torch.cat([torch.ones(*call.visible().shape[:3], key.shape[1], dtype=torch.bool), call.visible()], -1)
    out = scores.masked_fill(~shown, -torch.inf).softmax(-1) @ values
    return out * call.visible().any(-1, keepdim=True)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_form_and_its_gradients(causal: bool, masked: bool) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 11, 7, dtype=torch.float64, requires_grad=True) for heads in (6, 3, 3))
    key, value = (torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    mask = None
    if masked:
        mask = torch.rand(2, 1, 11, 11) > 0.4
        mask[0, :, 2] = False  # a query that sees nothing
    given = {"key": key, "value": value, "weight": weight}
    out, weights = PrefixSoftmax(5)(q, k, v, mask=mask, causal=causal, scale=0.3, parameters=given, need_weights=True)
    expected = reference(Attend(q, k, v, mask, causal, 0.3, {}), key, value, weight)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    assert bool((weights.sum(-1) < 1).all())
    leaves = (q, k, v, key, value, weight)
    goal = torch.randn_like(out)
    got = torch.autograd.grad((out * goal).sum(), leaves)
    wanted = torch.autograd.grad((expected * goal).sum(), leaves)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)
    plain = PrefixSoftmax(5)._plain(Attend(q, k, v, mask, causal, 0.3, given))  # what other devices run
    torch.testing.assert_close(plain, expected, rtol=1e-9, atol=1e-9)


def test_a_prefix_of_one_is_an_attention_bias() -> None:
    from sinkscope.attention import KVBias

    q, k, v = (torch.randn(2, heads, 11, 7) for heads in (6, 3, 3))
    key, value = torch.randn(2, 3, 7)
    given = {"key": key[:, None], "value": value[:, None], "weight": torch.zeros(6)}
    bias = KVBias()(q, k, v, causal=True, parameters={"key": key, "value": value})
    torch.testing.assert_close(PrefixSoftmax(1)(q, k, v, causal=True, parameters=given), bias)


def generated(made: Any, ids: Tensor, **options: Any) -> Tensor:
    out: Tensor = made.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, **options)
    return out[:, ids.shape[1] :]


@pytest.mark.parametrize("family", DECODERS)
def test_generation_with_and_without_cache(family: str) -> None:
    plain, ids = model(family), example(family)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    treated = sinkscope.treat(plain, [PrefixKV(3), Gate()], probe=ids)
    assert torch.equal(generated(treated, ids, attention_mask=mask), generated(plain, ids, attention_mask=mask))
    strong(treated)
    cached = generated(treated, ids, attention_mask=mask)
    assert torch.equal(cached, generated(treated, ids, attention_mask=mask, use_cache=False))
    assert not torch.equal(cached, generated(plain, ids, attention_mask=mask))
    if family == "llama":
        assert torch.equal(generated(treated, ids, cache_implementation="static"), generated(treated, ids))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_tokens_in_the_prefix_are_as_good_as_in_the_text(family: str) -> None:
    ids = example(family, batch=1)
    plain = model(family).double()
    treated = sinkscope.treat(plain, PrefixKV(2), probe=ids)
    strong(treated)  # what was there before is no matter
    treat.fill_prefix(treated, ids[:, :2])
    after = torch.arange(2, TOKENS)[None]
    torch.testing.assert_close(
        output(treated, ids[:, 2:], position_ids=after), output(plain, ids)[:, 2:], rtol=1e-5, atol=1e-6
    )
    for wrong, words in ((ids, "ids of shape"), (ids[:, :1], r"expected \(1, 2\), one per place")):
        with pytest.raises(OptionError, match=words):
            treat.fill_prefix(treated, wrong)
    with pytest.raises(OptionError, match="without a prefix in every block"):
        treat.fill_prefix(plain, ids[:, :2])


def test_left_padding_changes_nothing() -> None:
    ids = example("llama")
    treated = strong(sinkscope.treat(model("llama").double(), PrefixKV(3), probe=ids))
    out = output(treated, ids)
    padded = torch.cat([torch.zeros(2, 5, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(2, 5, dtype=torch.long), torch.ones_like(ids)], 1)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    got = output(treated, padded, attention_mask=mask, position_ids=places)[:, 5:]
    torch.testing.assert_close(got, out, rtol=1e-6, atol=1e-6)


def test_what_a_capture_sees() -> None:
    ids = example("llama")
    treated = strong(sinkscope.treat(model("llama").double(), PrefixKV(3), probe=ids))
    with torch.no_grad(), sinkscope.capture(treated) as calls:
        output(treated, ids)
    assert [call.form.name for call in calls if call.form is not None] == ["prefix-kv"] * LAYERS
    assert {call.kind for call in calls} == {"self"} and {call.rows for call in calls} == {"at most one"}
    for call in calls:
        assert bool((call.attention_weights(torch.float64).sum(-1) < 1).all()) and call.shape[3] == TOKENS


def test_saved_and_loaded(tmp_path: Path) -> None:
    plain, ids = model("gpt2"), example("gpt2")
    treated = learned(sinkscope.treat(plain, PrefixKV(3, layers=(0, 2)), probe=ids))
    treat.save(treated, tmp_path)
    again = treat.load(plain, tmp_path)
    assert treat.treatments_of(again) == (PrefixKV(3, layers=(0, 2)),)
    assert torch.equal(output(again, ids), output(treated, ids))


def test_the_prefix_as_a_whole_starts_as_light_as_one_column() -> None:
    made = sinkscope.treat(model("llama"), PrefixKV(53), probe=example("llama"))
    part = made.model.layers[0].self_attn.sinkscope.form
    call = Attend(torch.randn(1, 6, 2, 10), torch.randn(1, 3, 2, 10), torch.randn(1, 3, 2, 10), None, True, 1.0, {})
    weight = part.core(call, torch.zeros(1, 2, 30))[1]["weight"]
    torch.testing.assert_close(weight, part.column.logit() - log(53))


def test_graph_is_captured_whole() -> None:
    ids = example("llama")
    treated = strong(sinkscope.treat(model("llama"), PrefixKV(3), probe=ids))
    torch._dynamo.reset()
    compiled = torch.compile(treated, backend="eager", fullgraph=True)
    torch.testing.assert_close(output(compiled, ids), output(treated, ids), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


def test_wrong_use() -> None:
    with pytest.raises(OptionError, match="prefix-kv: count is True; expected a whole number from 1 on"):
        PrefixKV(True)
    with pytest.raises(OptionError, match="prefix-kv without a probe"):
        sinkscope.treat(model("gpt2"), PrefixKV())
    with pytest.raises(OptionError, match=r"learned-sink and prefix-kv at .*; expected one treatment that is its form"):
        sinkscope.treat(model("gpt2"), [PrefixKV(), LearnedSink()], probe=example("gpt2"))
