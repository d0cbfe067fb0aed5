"""Tiny models, tokenizers and pictures, made here and saved nowhere but in the test's own folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from sinkscope.models._placement import seeded

VISION: Mapping[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 37,
    "image_size": 28,
    "patch_size": 7,
}
TEXT: Mapping[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 37,
    "max_position_embeddings": 53,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _hf(model: str, config: str, *extra: Mapping[str, Any]) -> Callable[[], Any]:
    def build() -> Any:
        options: dict[str, Any] = {}
        for part in extra:
            options |= part
        with seeded(0):
            return getattr(transformers, model)(getattr(transformers, config)(**options)).eval()

    return build


def _clip(name: str) -> Callable[[], Any]:
    text = {**TEXT, "max_position_embeddings": 13}
    return _hf(f"{name}Model", f"{name}Config", {"text_config": text, "vision_config": dict(VISION)})


HF: Mapping[str, Callable[[], Any]] = {
    "vit": _hf("ViTForImageClassification", "ViTConfig", VISION),
    "deit": _hf("DeiTModel", "DeiTConfig", VISION),
    "dinov2": _hf("Dinov2Model", "Dinov2Config", VISION),
    "dinov2_registers": _hf(
        "Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", VISION, {"num_register_tokens": 3}
    ),
    "dinov3": _hf("DINOv3ViTModel", "DINOv3ViTConfig", VISION, {"num_register_tokens": 5}),
    "beit": _hf("BeitModel", "BeitConfig", VISION),
    "ijepa": _hf("IJepaModel", "IJepaConfig", VISION),
    "clip_vision": _hf("CLIPVisionModel", "CLIPVisionConfig", VISION),
    "siglip_vision": _hf("SiglipVisionModel", "SiglipVisionConfig", VISION),
    "mae": _hf("ViTMAEModel", "ViTMAEConfig", VISION),
    "yolos": _hf("YolosModel", "YolosConfig", VISION, {"image_size": [28, 28]}),
    "swin": _hf("SwinModel", "SwinConfig", {"image_size": 56, "patch_size": 7, "embed_dim": 12, "depths": [2, 2]},
                {"num_heads": [2, 2], "window_size": 2}),
    "clip": _clip("CLIP"),
    "siglip": _clip("Siglip"),
    "bert": _hf("BertForMaskedLM", "BertConfig", TEXT),
    "roberta": _hf("RobertaModel", "RobertaConfig", TEXT, {"pad_token_id": 1, "bos_token_id": 0}),
    "gpt2": _hf("GPT2LMHeadModel", "GPT2Config", TEXT, {"n_inner": 37}),
    "llama": _hf("LlamaForCausalLM", "LlamaConfig", TEXT, {"num_key_value_heads": 1}),
    "t5": _hf("T5ForConditionalGeneration", "T5Config",
              {"vocab_size": 101, "d_model": 24, "num_layers": 2, "num_heads": 2, "d_kv": 12, "d_ff": 37},
              {"decoder_start_token_id": 0}),
}  # fmt: skip


def save(name: str, folder: Path) -> Any:
    """Saves a tiny model in the transformers layout and returns it."""
    module = HF[name]()
    module.save_pretrained(folder)
    return module


def save_processor(folder: Path, **changes: Any) -> None:
    """An image processor of the DINOv2 kind: shorter side to 32, middle 28 x 28."""
    config = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 32},
        "resample": 3,
        "crop_size": {"height": 28, "width": 28},
        "image_mean": [0.5, 0.25, 0.125],
        "image_std": [0.5, 1.0, 2.0],
        "rescale_factor": 1 / 255,
        **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), True),
        **changes,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config))


WORDS = ("the", "cat", "sat", "on", "mat", "dog", "ran", "far", "42", "bird")


def bert_tokenizer(folder: Path) -> None:
    """Words between [CLS] and [SEP], saved beside a model; ids: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4."""
    vocabulary = {
        token: i for i, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, ".", ",", "##."))
    }
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    named = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    _saved(tokenizer, folder, model_max_length=29, **named)


def llama_tokenizer(folder: Path, *, bos: bool, side: str = "right") -> None:
    """Words with <s> before the text if `bos`; ids: <s> 0, </s> 1, <extra> 2; no padding token."""
    vocabulary = {
        token: i
        for i, token in enumerate(("<s>", "</s>", "<extra>", *(f"\u2581{word}" for word in WORDS), "\u2581.", "\u2581"))
    }
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="\u2581"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    _saved(
        tokenizer, folder, bos_token="<s>", eos_token="</s>", additional_special_tokens=["<extra>"], padding_side=side
    )


def _saved(tokenizer: Tokenizer, folder: Path, **options: Any) -> None:
    fast = cast(Any, PreTrainedTokenizerFast)(tokenizer_object=tokenizer, **options)
    fast.save_pretrained(folder)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture of random colours."""
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def token_states(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], length: int
) -> torch.Tensor:
    """What the first layer norm over a whole sequence of `length` tokens reads: the embedded tokens."""
    seen: list[torch.Tensor] = []

    def note(part: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if given[0].ndim == 3 and given[0].shape[1] == length:
            seen.append(given[0].detach().clone())

    norms = [part for part in module.modules() if isinstance(part, torch.nn.LayerNorm)]
    handles = [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        with torch.inference_mode():
            module(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    assert seen, f"no sequence of {length} tokens was normalised"
    return seen[0]
