"""Tiny random models of the families that heads are planted in, with inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers

from sinkscope.models import Inputs, Model, load, make_inputs
from sinkscope.models._placement import seeded

_SIZES: Mapping[str, Any] = {
    "hidden_size": 60,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "intermediate_size": 67,
    "initializer_range": 0.1,
}
_VISION = {**_SIZES, "image_size": 35, "patch_size": 7}
_TEXT = {**_SIZES, "vocab_size": 31, "max_position_embeddings": 53, "bos_token_id": 1, "eos_token_id": 2}

FAMILIES: Mapping[str, Callable[[], Any]] = {
    "dinov2": lambda: transformers.Dinov2Model(transformers.Dinov2Config(**_VISION, layerscale_value=0.7)),
    "registers": lambda: transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**_VISION, num_register_tokens=2)
    ),
    "vit": lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**_VISION)),
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(**_TEXT)),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**{**_TEXT, "num_attention_heads": 6, "num_key_value_heads": 2})
    ),
}


def plantable(family: str) -> Model:
    """A model with random weights, the same at every call."""
    with seeded(0):
        module = FAMILIES[family]().eval()
        if load(module).modality == "vision":  # transformers starts these tables near zero
            for name, parameter in module.named_parameters():
                if name.endswith(("cls_token", "register_tokens", "position_embeddings")):
                    torch.nn.init.normal_(parameter)
    return load(module)


def some_inputs(model: Model, count: int = 43) -> Inputs:
    """Random pictures, or random token ids of which the first is always the same."""
    generator = torch.Generator().manual_seed(0)
    if model.modality == "vision":
        return make_inputs(model, torch.randn(count, 3, 35, 35, generator=generator), batch_size=11)
    ids = torch.randint(3, 31, (count, 23), generator=generator)
    ids[:, 0] = 1
    return make_inputs(model, ids, batch_size=11)
