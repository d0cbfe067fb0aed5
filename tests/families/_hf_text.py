"""Text models of transformers. Reference as for the vision models; the softmax of gpt-oss with its extra column is
read from the eager definition while it runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests._reference import ReferenceLayer
from tests.families._family import MAIN, Example, Family, Site, noise, observe, padded_mask, randomised, token_ids
from tests.families._hf_vision import HOW, eager, returned

VOCABULARY, TOKENS, LAYERS = 97, 23, 2
_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 29,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GQA = Site("model.layers.{}", "self_attn", "self_attn.o_proj.weight", "self_attn.v_proj", 6, returned, causal=True)


def _build(class_name: str, config_name: str, options: dict[str, Any], **later: Any) -> nn.Module:
    import transformers

    config = getattr(transformers, config_name)(**options)
    for name, value in later.items():
        setattr(config, name, value)
    model: nn.Module = getattr(transformers, class_name)(config)
    return randomised(model)


def _example(batch: int, padding: str | None = None, cache: bool = True) -> Example:
    """Ids, and a mask where there is padding; `cache`: the forward knows the word."""
    ids, kwargs = token_ids(batch, TOKENS, VOCABULARY), {"use_cache": False} if cache else {}
    if padding is None:
        return Example((ids,), kwargs, {MAIN: torch.ones_like(ids).bool()})
    mask = padded_mask(batch, TOKENS, padding)
    return Example((ids,), {**kwargs, "attention_mask": mask}, {MAIN: mask.bool()})


def _layers(sites: list[Site], model: nn.Module, example: Example) -> list[ReferenceLayer]:
    return observe(eager(model), example, sites)


def _family(
    name: str,
    build: Callable[[], nn.Module],
    example: Callable[[int], Example],
    sites: list[Site],
    how: str = HOW,
    kinds: tuple[str, ...] | None = None,
    route: str = "fused",
) -> Family:
    return Family(name, how, build, example, partial(_layers, sites), kinds or ("self",) * len(sites), route)


def _repeated(site: Site, **changes: Any) -> list[Site]:
    return [site.of_layer(i, **changes) for i in range(LAYERS)]


def _decoder(
    name: str, model: str, example: Callable[[int], Example], windows: tuple[int | None, ...], **options: Any
) -> Family:
    """A Llama-like model; `windows` per layer."""
    later = {key: options.pop(key) for key in ("layer_types",) if key in options}
    sites = [_GQA.of_layer(i, window=window) for i, window in enumerate(windows)]
    route = options.pop("route", "fused")
    config = model.removesuffix("ForCausalLM") + ("TextConfig" if model.startswith("Gemma3") else "Config")
    return _family(name, partial(_build, model, config, {**_DECODER, **options}, **later), example, sites, route=route)


def _gpt2_values(attention: nn.Module, args: tuple[Any, ...]) -> Tensor:
    made: Tensor = attention.c_attn(args[0])  # type: ignore[operator]
    return made.chunk(3, -1)[2]


def _t5_example(batch: int) -> Example:
    ids, mask = token_ids(batch, TOKENS, VOCABULARY), padded_mask(batch, TOKENS, "right")
    decoder = token_ids(batch, 19, VOCABULARY, first=0)
    return Example(
        kwargs={"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder, "use_cache": False},
        valid={MAIN: mask.bool(), "decoder": torch.ones_like(decoder).bool()},
    )


def _whisper_example(batch: int) -> Example:
    decoder = token_ids(batch, 19, VOCABULARY, first=1)
    return Example(
        kwargs={"input_features": noise(batch, 7, 34), "decoder_input_ids": decoder, "use_cache": False},
        valid={MAIN: torch.ones(batch, 17, dtype=torch.bool), "decoder": torch.ones_like(decoder).bool()},
    )


_T5 = Site("", "layer.0.SelfAttention", "layer.0.SelfAttention.o.weight", "layer.0.SelfAttention.v", 3, returned)
_WHISPER = Site("", "self_attn", "self_attn.out_proj.weight", "self_attn.v_proj", 3, returned)
_BERT = Site("encoder.layer.{}", "attention.self", "attention.output.dense.weight", "attention.self.value", 3, returned)
_ALBERT = Site(
    "encoder.albert_layer_groups.0.albert_layers.0",
    "attention",
    "attention.dense.weight",
    "attention.value",
    3,
    returned,
)
_GPT2 = Site("transformer.h.{}", "attn", "attn.c_proj.weight", _gpt2_values, 3, returned, transposed=True, causal=True)
_SMALL = {"hidden_size": 21, "num_hidden_layers": LAYERS, "num_attention_heads": 3, "intermediate_size": 29}
_ENCODER_DECODER = ("self", "self", "self", "cross", "self", "cross")
_CLIP = Site(
    "encoder.layers.{}", "self_attn", "self_attn.out_proj.weight", "self_attn.v_proj", 3, returned, causal=True
)

HF_TEXT = (
    _family(
        "bert",
        partial(_build, "BertModel", "BertConfig", {"vocab_size": VOCABULARY, "max_position_embeddings": 64, **_SMALL}),
        partial(_example, padding="right", cache=False),
        _repeated(_BERT),
    ),
    _family(
        "albert",
        partial(
            _build,
            "AlbertModel",
            "AlbertConfig",
            {
                "vocab_size": VOCABULARY,
                "embedding_size": 11,
                "max_position_embeddings": 64,
                **_SMALL,
                "num_hidden_layers": 5,
            },
        ),
        partial(_example, padding="right", cache=False),
        [_ALBERT] * 5,
    ),
    _family(
        "clip-text",
        partial(
            _build,
            "CLIPTextModel",
            "CLIPTextConfig",
            {"vocab_size": VOCABULARY, "max_position_embeddings": TOKENS, **_SMALL},
        ),
        partial(_example, cache=False),
        _repeated(_CLIP),
    ),
    _family(
        "gpt2",
        partial(
            _build,
            "GPT2LMHeadModel",
            "GPT2Config",
            {"vocab_size": VOCABULARY, "n_embd": 21, "n_layer": LAYERS, "n_head": 3},
        ),
        _example,
        _repeated(_GPT2),
    ),
    _decoder("llama", "LlamaForCausalLM", _example, (None, None)),
    _decoder("llama-left", "LlamaForCausalLM", partial(_example, padding="left"), (None, None)),
    _decoder("llama-right", "LlamaForCausalLM", partial(_example, padding="right"), (None, None)),
    _decoder("mistral", "MistralForCausalLM", _example, (11, 11), sliding_window=11),
    _decoder("mistral-narrow", "MistralForCausalLM", partial(_example, padding="left"), (5, 5), sliding_window=5),
    _decoder(
        "gemma2",
        "Gemma2ForCausalLM",
        _example,
        (11, None),
        sliding_window=11,
        query_pre_attn_scalar=4,
        attn_logit_softcapping=3.0,
        attn_implementation="eager",
        route="weights",
    ),
    _decoder(
        "gemma3",
        "Gemma3ForCausalLM",
        partial(_example, padding="left"),
        (11, None),
        sliding_window=11,
        query_pre_attn_scalar=4,
        layer_types=["sliding_attention", "full_attention"],
    ),
    Family(
        "gpt-oss",
        "transformers' eager attention in float64: its softmax read with the extra column, value layer by hook",
        partial(
            _build,
            "GptOssForCausalLM",
            "GptOssConfig",
            {
                **_DECODER,
                "sliding_window": 11,
                "num_local_experts": 3,
                "num_experts_per_tok": 2,
                "experts_implementation": "eager",
            },
        ),
        partial(_example, padding="right"),
        partial(_layers, [_GQA.of_layer(0, window=11, sink_column=True), _GQA.of_layer(1, sink_column=True)]),
        ("self", "self"),
        "weights",
    ),
    _family(
        "t5",
        partial(
            _build,
            "T5ForConditionalGeneration",
            "T5Config",
            {"vocab_size": VOCABULARY, "d_model": 21, "d_kv": 7, "num_heads": 3, "num_layers": LAYERS, "d_ff": 29},
        ),
        _t5_example,
        [
            *[_T5.of_layer(0, block=f"encoder.block.{i}") for i in range(LAYERS)],
            *[_T5.of_layer(0, block=f"decoder.block.{i}", causal=True, stream="decoder") for i in range(LAYERS)],
        ],
        kinds=_ENCODER_DECODER,
    ),
    _family(
        "whisper",
        partial(
            _build,
            "WhisperModel",
            "WhisperConfig",
            {
                "vocab_size": VOCABULARY,
                "d_model": 24,
                "encoder_layers": LAYERS,
                "decoder_layers": LAYERS,
                "encoder_attention_heads": 3,
                "decoder_attention_heads": 3,
                "encoder_ffn_dim": 29,
                "decoder_ffn_dim": 29,
                "num_mel_bins": 7,
                "max_source_positions": 17,
                "max_target_positions": 31,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "decoder_start_token_id": 1,
            },
        ),
        _whisper_example,
        [
            *[_WHISPER.of_layer(0, block=f"encoder.layers.{i}") for i in range(LAYERS)],
            *[_WHISPER.of_layer(0, block=f"decoder.layers.{i}", causal=True, stream="decoder") for i in range(LAYERS)],
        ],
        kinds=_ENCODER_DECODER,
    ),
)
