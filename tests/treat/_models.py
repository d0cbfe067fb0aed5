"""Tiny models of every family with random weights, an input for each, and treatments with something learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from sinkscope import treat
from sinkscope.models._placement import seeded
from sinkscope.treat import AttentionBias, Gate, HeadNorm, KeyBias, LearnedSink, Treatment

LAYERS, SIDE, PATCH, TOKENS, VOCABULARY = 3, 15, 5, 11, 101
VISION: dict[str, Any] = {
    "hidden_size": 21,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 3,
    "intermediate_size": 29,
    "image_size": SIDE,
    "patch_size": PATCH,
}
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 30,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 3,
    "intermediate_size": 37,
    "max_position_embeddings": 53,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED: dict[str, Any] = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10}
NO_DROPOUT = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}


def _hf(model: str, config: str, options: Mapping[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
        return made

    return build


def _timm() -> nn.Module:
    timm: Any = pytest.importorskip("timm", reason="the extra timm is not installed")
    size = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 21, "depth": LAYERS, "num_heads": 3}
    made: nn.Module = timm.create_model("vit_tiny_patch16_224", init_values=0.5, reg_tokens=2, num_classes=7, **size)
    return made


BUILD: Mapping[str, Callable[[], nn.Module]] = {
    "vit": _hf("ViTForImageClassification", "ViTConfig", VISION),
    "dinov2": _hf("Dinov2Model", "Dinov2Config", VISION | {"mlp_ratio": 1}),
    "dinov2-registers": _hf(
        "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", VISION | {"mlp_ratio": 1, "num_register_tokens": 2}
    ),
    "clip-vision": _hf("CLIPVisionModel", "CLIPVisionConfig", VISION),
    "siglip-vision": _hf("SiglipVisionModel", "SiglipVisionConfig", VISION),
    "bert": _hf("BertModel", "BertConfig", TEXT | NO_DROPOUT),
    "llama": _hf("LlamaForCausalLM", "LlamaConfig", TEXT | GROUPED),
    "qwen2": _hf("Qwen2ForCausalLM", "Qwen2Config", TEXT | {"num_attention_heads": 3, "num_key_value_heads": 1}),
    "qwen3": _hf("Qwen3ForCausalLM", "Qwen3Config", TEXT | GROUPED),
    "mistral": _hf("MistralForCausalLM", "MistralConfig", TEXT | GROUPED | {"sliding_window": 5}),
    "gpt2": _hf("GPT2LMHeadModel", "GPT2Config", TEXT | {"n_inner": 37}),
    "timm-vit": _timm,
}
DECODERS = ("llama", "qwen2", "qwen3", "mistral", "gpt2")
VISIONS = tuple(name for name in BUILD if name not in (*DECODERS, "bert"))
HF = tuple(name for name in BUILD if name != "timm-vit")


def model(family: str, seed: int = 0) -> Any:
    """A model whose weights are large enough for attention to be far from uniform."""
    with seeded(seed):
        made = BUILD[family]().eval()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return made


def example(family: str, batch: int = 2, seed: int = 0) -> Tensor:
    """Pictures or token ids."""
    generator = torch.Generator().manual_seed(seed)
    if family in VISIONS:
        return torch.randn(batch, 3, SIDE, SIDE, generator=generator)
    return torch.randint(3, VOCABULARY, (batch, TOKENS), generator=generator)


def output(made: Any, x: Tensor, **kwargs: Any) -> Any:
    """Final tokens or logits."""
    out = made(x, **kwargs)
    return out if isinstance(out, Tensor) else out[0]


def sinks() -> list[Treatment]:
    """What may stand together, one for every place in an attention."""
    return [Gate(), Gate("elementwise", position="value"), LearnedSink(), HeadNorm()]


def learned(made: Any, amount: float = 0.3) -> Any:
    """The treated model with its added parameters changed."""
    with seeded(1), torch.no_grad():
        for parameter in treat.added(made).values():
            parameter.add_(torch.randn_like(parameter), alpha=amount)
    return made


HARMLESS: Mapping[str, Treatment] = {
    "headwise": Gate(),
    "elementwise": Gate("elementwise"),
    "constant": Gate(input_dependent=False),
    "other-start": Gate(start=0.9),
    "value-headwise": Gate(position="value"),
    "value-elementwise": Gate("elementwise", position="value"),
    "learned-sink": LearnedSink(),
    "attention-bias": AttentionBias(),
    "key-bias": KeyBias(),
    "head-norm": HeadNorm(),
}
