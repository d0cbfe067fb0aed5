"""A cache of constant size against attention over kept keys, written out without any cache."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import sinkscope
from sinkscope._errors import OptionError
from sinkscope.treat import Gate, RemoveSinks, SinkCache
from tests.treat._models import GROUPED, TEXT, VOCABULARY, example, learned, model, output

WINDOW, SINKS, LENGTH = 11, 3, 47
LLAMAS = ("llama", "qwen2", "qwen3", "mistral")
YARN = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 23}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4,
          "original_max_position_embeddings": 29}  # fmt: skip


def decoder(family: str) -> Any:
    """In float64. Mistral has a sliding window that is as long as the cache's."""
    made = model(family)
    made.config.sliding_window = WINDOW if family == "mistral" else None
    return made.double()


def text(batch: int = 2, length: int = LENGTH) -> Tensor:
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(7))


def turned(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """Rotary embedding of (batch, heads, tokens, dim)."""
    half = x.shape[-1] // 2
    angles = positions[:, None] * base ** (-torch.arange(half, dtype=torch.float64) / half)
    pairs = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous())
    pairs = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([pairs.real, pairs.imag], -1)


def reference(made: Any, ids: Tensor, window: int, sinks: int) -> Tensor:
    """Logits of every token, one at a time: keys are kept before any rotation and rotated by their place."""
    kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in made.model.layers]
    logits = []
    for at in range(ids.shape[1]):
        x = made.model.embed_tokens(ids[:, at : at + 1])
        for layer, pairs in zip(made.model.layers, kept, strict=True):
            attention = layer.self_attn
            h = layer.input_layernorm(x)
            q, k, v = (proj(h).unflatten(-1, (-1, attention.head_dim)) for proj in
                       (attention.q_proj, attention.k_proj, attention.v_proj))  # fmt: skip
            if hasattr(attention, "q_norm"):
                q, k = attention.q_norm(q), attention.k_norm(k)
            q, k, v = (z.transpose(1, 2) for z in (q, k, v))
            pairs.append((k, v))
            if len(pairs) > window:
                del pairs[sinks]
            keys = turned(torch.cat([k for k, _ in pairs], 2), torch.arange(len(pairs)), 1e4)
            values = torch.cat([v for _, v in pairs], 2)
            groups = q.shape[1] // keys.shape[1]
            scores = turned(q, torch.tensor([len(pairs) - 1]), 1e4) @ keys.repeat_interleave(groups, 1).mT
            weights = (scores * attention.head_dim**-0.5).softmax(-1)
            out = weights @ values.repeat_interleave(groups, 1)
            x = x + attention.o_proj(out.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        logits.append(made.lm_head(made.model.norm(x)))
    return torch.cat(logits, 1)


def stepped(made: Any, ids: Tensor, cache: Any, sizes: list[int] | None = None) -> Tensor:
    """Logits, with the tokens fed in parts, one by one by default."""
    parts = torch.split(ids, sizes or [1] * ids.shape[1], 1)
    return torch.cat([made(part, past_key_values=cache).logits for part in parts], 1)


@pytest.mark.parametrize("sinks", [0, SINKS])
@pytest.mark.parametrize("family", LLAMAS)
@torch.no_grad()
def test_beyond_the_window(family: str, sinks: int) -> None:
    made, ids = decoder(family), text()
    cache: Any = SinkCache(made, WINDOW, sinks)
    logits = stepped(made, ids, cache)
    torch.testing.assert_close(logits, reference(made, ids, WINDOW, sinks), rtol=1e-4, atol=1e-5)
    own = made(ids, use_cache=False).logits  # without sinks that of a model with such a window is the same thing
    assert ((logits - own).abs().max() < 1e-5) == (family == "mistral" and sinks == 0)
    assert cache.get_seq_length() == LENGTH and cache.layers[0].kept == WINDOW


@torch.no_grad()
def test_sinks_matter() -> None:
    made, ids = decoder("llama"), text()
    with_sinks, without = (stepped(made, ids, SinkCache(made, WINDOW, sinks)) for sinks in (SINKS, 0))
    torch.testing.assert_close(with_sinks[:, :WINDOW], without[:, :WINDOW])
    assert (with_sinks - without)[:, WINDOW:].abs().amax((0, 2)).min() > 1e-3


@pytest.mark.parametrize("sizes", [None, [WINDOW], [4, 1, 6]])
@pytest.mark.parametrize("family", LLAMAS)
@torch.no_grad()
def test_inside_the_window_it_is_full_attention(family: str, sizes: list[int] | None) -> None:
    made, ids = decoder(family), text(length=WINDOW)
    logits = stepped(made, ids, SinkCache(made, WINDOW, SINKS), sizes)
    torch.testing.assert_close(logits, made(ids).logits, rtol=1e-6, atol=1e-7)


@torch.no_grad()
def test_several_tokens_at_once() -> None:
    """Room is made first: a part of 5 tokens sees the 3 first, the 3 last of those before, and itself."""
    made, ids = decoder("llama"), text(length=16)
    cache: Any = SinkCache(made, WINDOW, SINKS)
    stepped(made, ids[:, :11], cache)
    together = made(ids[:, 11:], past_key_values=cache).logits
    cache = SinkCache(made, WINDOW, SINKS)
    stepped(made, ids[:, :11], cache)
    for layer in cache.layers:  # as if 5 had been dropped before the first of them came
        layer.keys, layer.values = (torch.cat([x[:, :, :3], x[:, :, 8:]], 2) for x in (layer.keys, layer.values))
        layer.base = 5
    torch.testing.assert_close(together, stepped(made, ids[:, 11:], cache), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rope", [YARN, LLAMA3, {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}])
@torch.no_grad()
def test_scaled_rotary_embeddings(rope: dict[str, Any]) -> None:
    """One layer, whose keys depend on their token alone: the window as an input of its own is a reference."""
    config = transformers.LlamaConfig(**{**TEXT, **GROUPED, "num_hidden_layers": 1}, rope_parameters=rope)
    torch.manual_seed(0)
    made: Any = transformers.LlamaForCausalLM(config)
    made.eval().double()
    for parameter in made.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.2)
    ids = text()
    logits = stepped(made, ids, SinkCache(made, WINDOW, SINKS))
    for at in (WINDOW, 23, LENGTH - 1):
        kept = torch.cat([ids[:, :SINKS], ids[:, at + 1 - (WINDOW - SINKS) : at + 1]], 1)
        torch.testing.assert_close(logits[:, at], made(kept).logits[:, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prompt", [5, LENGTH])
def test_generate(prompt: int) -> None:
    made, ids = model("llama"), text(length=prompt)
    cache: Any = SinkCache(made, WINDOW, SINKS)
    options = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False, "prefill_chunk_size": 1}
    out = made.generate(ids, past_key_values=cache, **options)
    with torch.no_grad():
        logits = reference(made.double(), out, WINDOW, SINKS)[:, prompt - 1 : -1]
    logits[..., 2] = -torch.inf  # the end, which min_new_tokens forbids
    assert torch.equal(logits.argmax(-1), out[:, prompt:])


def test_generation_goes_on_and_starts_again() -> None:
    made, ids = model("llama"), text(1, 7)
    options: dict[str, Any] = {"min_new_tokens": 30, "max_new_tokens": 30, "do_sample": False}
    cache: Any = SinkCache(made, WINDOW, SINKS)
    first = made.generate(ids, past_key_values=cache, **options)
    again = made.generate(first, attention_mask=torch.ones_like(first), past_key_values=cache, **options)
    whole = made.generate(ids, past_key_values=SinkCache(made, WINDOW, SINKS), **{**options, "min_new_tokens": 60,
                                                                                  "max_new_tokens": 60})  # fmt: skip
    assert torch.equal(again, whole)
    cache.reset()
    assert torch.equal(made.generate(ids, past_key_values=cache, **options), first)
    beams = made.generate(ids, past_key_values=SinkCache(made, WINDOW, SINKS), num_beams=3, **options)
    assert beams.shape == (1, 37)


@torch.no_grad()
def test_memory_is_constant() -> None:
    made, ids = model("llama"), text(1, 200)
    cache: Any = SinkCache(made, WINDOW, SINKS)
    sizes = []
    for part in torch.split(ids, 1, 1):
        made(part, past_key_values=cache)
        sizes.append(cache.nbytes)
        assert 0 <= cache.layers[1].base < 2 * WINDOW
    assert set(sizes[WINDOW - 1 :]) == {3 * 2 * 3 * WINDOW * 10 * 4}  # layers, key and value, heads, keys, dim, bytes
    assert sizes[0] == sizes[-1] / WINDOW


@torch.no_grad()
def test_half_precision_stays_close() -> None:
    made, ids = model("llama"), text()
    wanted = stepped(made, ids, SinkCache(made, WINDOW, SINKS))
    half = made.to(torch.bfloat16)
    found = stepped(half, ids, SinkCache(half, WINDOW, SINKS))
    assert (found.float() - wanted).abs().mean() < 0.05 * wanted.abs().mean()


@torch.no_grad()
def test_treated_models() -> None:
    ids = text(1)
    treated = learned(sinkscope.treat(decoder("llama"), [Gate(), RemoveSinks("zero", (0, 1, 2))]))
    logits = stepped(treated, ids, SinkCache(treated, WINDOW, SINKS))
    plain = stepped(sinkscope.treat.undo(treated), ids, SinkCache(treated, WINDOW, SINKS))
    assert bool(logits.isfinite().all()) and (logits - plain).abs().max() > 1e-3


def test_the_model_is_left_as_it_was() -> None:
    made, ids = model("llama"), text(1)
    before = output(made, ids)
    hooks = len(made.model._forward_pre_hooks)
    cache: Any = SinkCache(sinkscope.load(made), WINDOW, SINKS)
    assert torch.equal(output(made, ids), before)  # other caches, or none, are used as ever
    made(ids[:, :5], past_key_values=cache)
    del cache
    gc.collect()
    assert len(made.model._forward_pre_hooks) == hooks
    assert "_forward_pre_hooks_with_kwargs" not in vars(made.model) or not made.model._forward_pre_hooks_with_kwargs


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("gpt2", "a SinkCache for GPT-2, which learns positions that are in its hidden states; expected rotary"),
        ("bert", "a SinkCache for BERT, which is no decoder"),
        ("mistral", "window of 11 for a model that looks back 5 tokens; expected a window up to 5"),
    ],
)
def test_models_without_movable_keys(family: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        SinkCache(model(family), WINDOW, SINKS)


def test_rotary_embeddings_that_depend_on_length() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    made = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**TEXT, **GROUPED}, rope_parameters=rope))
    with pytest.raises(OptionError, match=r"of type dynamic, whose frequencies depend .*; next: use the model's own"):
        SinkCache(made, WINDOW)


@pytest.mark.parametrize(("window", "sinks"), [(4, 4), (4, -1), (0, 0)])
def test_sizes_that_do_not_fit(window: int, sinks: int) -> None:
    with pytest.raises(OptionError, match=rf"a cache of {window} keys, {sinks} of them sinks; expected 0 or more"):
        SinkCache(model("llama"), window, sinks)


def test_uses_that_cannot_be_right() -> None:
    made, ids = model("llama"), example("llama")
    cache: Any = SinkCache(made, 8, 3)
    with pytest.raises(OptionError, match=r"11 tokens at once for a cache with room for 8; .* prefill_chunk_size=5"):
        made(ids, past_key_values=cache)
    made(ids[:, :4], past_key_values=cache)
    with pytest.raises(OptionError, match="6 tokens at once for a cache with room for 5"):
        made(ids[:, 4:10], past_key_values=cache)
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[0, 0] = 0
    with pytest.raises(OptionError, match="padding, or a mask of its own, with a SinkCache"):
        made(ids[:, 4:5], past_key_values=cache, attention_mask=mask)
    for other in (model("llama", 1), model("gpt2")):
        with pytest.raises(OptionError, match=r"a SinkCache in another model; .* make one for this model"):
            other(ids[:, 4:5], past_key_values=cache)
    twin = model("llama", 1)
    kept = SinkCache(twin, 8, 3)
    with pytest.raises(OptionError, match="a SinkCache in another model"):
        twin(ids[:, 4:5], past_key_values=cache)
    with pytest.raises(OptionError, match="taking tokens back"):
        kept.crop(-1)
