"""The families of models that can be treated: where their parts are, in the words of the model's own code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from sinkscope.models import Role

Kind = Literal["vision", "encoder", "decoder"]


@dataclass(frozen=True)
class Family:
    """Models built alike. Paths are qualified names, in the trunk (the model without its head) or in one block.

    - `name`, `title`: for files and for messages.
    - `kind`: `vision`, `encoder` (text, both directions) or `decoder` (causal text).
    - `library`: that defines the trunk.
    - `trunks`, `attentions`: names of the classes of the trunk and of its attention modules.
    - `blocks`: the list of blocks.
    - `embeddings`: the module whose output is the first block's input, before any norm in front of the blocks.
    - `final_norm`: norm after the last block; None where every block ends with its own.
    - `attention`, `projection`: in a block; the attention module and its output projection.
    - `value`: in a block; the projection that makes the values.
    - `fused`: that projection makes queries, keys and values, in this order.
    - `branch`: in a block; the module whose output is what attention adds to the residual stream.
    - `neurons`: in a block; the last layer of the MLP, whose input are the activations of its neurons. The first of
      these that the block has.
    - `prefix`: roles of the tokens in front of the patches, given the trunk.
    """

    name: str
    title: str
    kind: Kind
    library: Literal["transformers", "timm"]
    trunks: tuple[str, ...]
    attentions: tuple[str, ...]
    blocks: str
    embeddings: str
    final_norm: str | None
    attention: str
    value: str
    projection: str
    branch: str
    neurons: tuple[str, ...]
    fused: bool = False
    prefix: Callable[[Any], tuple[Role, ...]] = lambda _trunk: ()

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it."""
        return self.kind == "decoder"


def _cls(_trunk: nn.Module) -> tuple[Role, ...]:
    return ("cls",)


def _cls_and_registers(trunk: Any) -> tuple[Role, ...]:
    return ("cls", *("register",) * trunk.config.num_register_tokens)


def _timm_prefix(trunk: Any) -> tuple[Role, ...]:
    """Class token, then registers, as timm puts them together; a distilled DeiT is a class of its own."""
    return (*("cls",) * int(trunk.has_class_token), *("register",) * trunk.num_reg_tokens)


def _dinov2(name: str, title: str, prefix: Callable[[Any], tuple[Role, ...]]) -> Family:
    return Family(
        name=name,
        title=title,
        kind="vision",
        library="transformers",
        trunks=(f"{title}Model",),
        attentions=(f"{title}Attention",),
        blocks="encoder.layer",
        embeddings="embeddings",
        final_norm="layernorm",
        attention="attention",
        value="attention.v_proj",
        projection="attention.o_proj",
        branch="layer_scale1",
        neurons=("mlp.fc2", "mlp.down_proj"),
        prefix=prefix,
    )


def _tower(name: str, title: str, prefix: Callable[[Any], tuple[Role, ...]]) -> Family:
    """The vision tower of a pair of encoders."""
    return Family(
        name=name,
        title=f"{title} vision",
        kind="vision",
        library="transformers",
        trunks=(f"{title}VisionModel",),
        attentions=(f"{title}Attention",),
        blocks="encoder.layers",
        embeddings="embeddings",
        final_norm="post_layernorm",
        attention="self_attn",
        value="self_attn.v_proj",
        projection="self_attn.out_proj",
        branch="self_attn.out_proj",
        neurons=("mlp.fc2",),
        prefix=prefix,
    )


_LLAMAS = ("Llama", "Qwen2", "Qwen3", "Mistral")

FAMILIES: tuple[Family, ...] = (
    Family(
        name="vit",
        title="ViT",
        kind="vision",
        library="transformers",
        trunks=("ViTModel",),
        attentions=("ViTAttention",),
        blocks="layers",
        embeddings="embeddings",
        final_norm="layernorm",
        attention="attention",
        value="attention.v_proj",
        projection="attention.o_proj",
        branch="attention.o_proj",
        neurons=("mlp.fc2",),
        prefix=_cls,
    ),
    _dinov2("dinov2", "Dinov2", _cls),
    _dinov2("dinov2-registers", "Dinov2WithRegisters", _cls_and_registers),
    _tower("clip-vision", "CLIP", _cls),
    _tower("siglip-vision", "Siglip", lambda _trunk: ()),
    Family(
        name="bert",
        title="BERT",
        kind="encoder",
        library="transformers",
        trunks=("BertModel",),
        attentions=("BertSelfAttention",),
        blocks="encoder.layer",
        embeddings="embeddings",
        final_norm=None,
        attention="attention.self",
        value="attention.self.value",
        projection="attention.output.dense",
        branch="attention.output.dense",
        neurons=("output.dense",),
    ),
    Family(
        name="llama",
        title="Llama, Qwen2, Qwen3, Mistral, SmolLM",
        kind="decoder",
        library="transformers",
        trunks=tuple(f"{name}Model" for name in _LLAMAS),
        attentions=tuple(f"{name}Attention" for name in _LLAMAS),
        blocks="layers",
        embeddings="embed_tokens",
        final_norm="norm",
        attention="self_attn",
        value="self_attn.v_proj",
        projection="self_attn.o_proj",
        branch="self_attn.o_proj",
        neurons=("mlp.down_proj",),
    ),
    Family(
        name="gpt2",
        title="GPT-2",
        kind="decoder",
        library="transformers",
        trunks=("GPT2Model",),
        attentions=("GPT2Attention",),
        blocks="h",
        embeddings="drop",
        final_norm="ln_f",
        attention="attn",
        value="attn.c_attn",
        projection="attn.c_proj",
        branch="attn.c_proj",
        neurons=("mlp.c_proj",),
        fused=True,
    ),
    Family(
        name="timm-vit",
        title="timm VisionTransformer",
        kind="vision",
        library="timm",
        trunks=("VisionTransformer",),
        attentions=("Attention", "TreatedAttention"),
        blocks="blocks",
        embeddings="norm_pre",
        final_norm="norm",
        attention="attn",
        value="attn.qkv",
        projection="attn.proj",
        branch="ls1",
        neurons=("mlp.fc2",),
        fused=True,
        prefix=_timm_prefix,
    ),
)
