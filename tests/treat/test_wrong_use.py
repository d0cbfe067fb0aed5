"""What cannot be treated, and what is said then."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import sinkscope
from sinkscope import treat
from sinkscope._errors import OptionError
from sinkscope.treat import (
    ORDER,
    AttentionBias,
    ClippedSoftmax,
    Form,
    Gate,
    GlobalPathway,
    HeadNorm,
    LearnedSink,
    OffByOne,
    anatomy_of,
    supported,
)
from tests.treat._models import BUILD, LAYERS, TEXT, VISION, VISIONS, example, model, output


@pytest.mark.parametrize("family", BUILD)
def test_anatomy(family: str) -> None:
    made = model(family)
    found = anatomy_of(made)
    grouped = ("qwen2", "qwen3", "mistral")
    assert found.family.name == ("llama" if family in grouped else family)
    assert len(found.sites) == LAYERS and [site.index for site in found.sites] == list(range(LAYERS))
    for site in found.sites:
        assert made.get_submodule(site.name) is site.attention
        shape = site.shape
        heads = 6 if family in ("llama", "qwen3", "mistral") else 3
        assert (shape.heads, shape.kv_heads) == (
            heads,
            {"llama": 3, "qwen3": 3, "mistral": 3, "qwen2": 1}.get(family, heads),
        )
        assert (shape.residual, shape.head_dim) == ((21, 7) if family in VISIONS else (30, 10))
    prefix = {"dinov2-registers": 3, "timm-vit": 3, "vit": 1, "dinov2": 1, "clip-vision": 1}
    assert len(found.prefix) == prefix.get(family, 0)


def test_embeddings_and_norm_are_where_anatomy_says() -> None:
    """The embeddings' output is the first block's input; the final norm's output are the final tokens."""
    for family in ("vit", "dinov2", "siglip-vision", "bert", "llama", "gpt2", "timm-vit"):
        made, x = model(family), example(family)
        found = anatomy_of(made)
        seen: dict[str, Any] = {}

        def keep(name: str, seen: dict[str, Any] = seen) -> Callable[..., None]:
            def hook(_module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
                given = args[0] if args else next(iter(kwargs.values()))
                seen[name] = (given, out[0] if isinstance(out, tuple) else out)

            return hook

        found.embeddings.register_forward_hook(keep("embeddings"), with_kwargs=True)
        found.sites[0].block.register_forward_hook(keep("first"), with_kwargs=True)
        found.sites[-1].block.register_forward_hook(keep("last"), with_kwargs=True)
        output(made, x)
        assert torch.equal(seen["embeddings"][1], seen["first"][0]), family
        if found.final_norm is not None:
            found.final_norm.register_forward_hook(keep("norm"), with_kwargs=True)
            output(made, x)
            assert torch.equal(seen["norm"][0], seen["last"][1]), family


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Linear(3, 5),
        lambda: transformers.SwinModel(transformers.SwinConfig(image_size=56, embed_dim=12, depths=[1], num_heads=[2])),
        lambda: transformers.T5Model(transformers.T5Config(vocab_size=101, d_model=24, num_layers=1, d_kv=12, d_ff=37)),
    ],
    ids=["linear", "swin", "t5"],
)
def test_other_families_get_the_list(build: Callable[[], nn.Module]) -> None:
    made = build()
    with pytest.raises(OptionError) as caught:
        sinkscope.treat(made, Gate())
    assert f"{type(made).__name__} is of no family that can be treated; expected one of" in str(caught.value)
    for title in (
        "ViT",
        "Dinov2",
        "Dinov2WithRegisters",
        "CLIP vision",
        "Siglip vision",
        "BERT",
        "Llama",
        "GPT-2",
        "timm",
    ):
        assert title in supported() and title in str(caught.value)


def test_parts_that_are_not_plain() -> None:
    flash = model("vit")
    flash.config._attn_implementation = "flash_attention_2"
    with pytest.raises(OptionError, match=r"vit\.layers\.0\.attention runs .* 'flash_attention_2'"):
        sinkscope.treat(flash, Gate())
    decoder = transformers.BertModel(transformers.BertConfig(**TEXT, is_decoder=True, add_cross_attention=True))
    with pytest.raises(OptionError, match="stands beside cross-attention"):
        sinkscope.treat(decoder, Gate())
    with torch.device("meta"):
        empty = transformers.ViTModel(transformers.ViTConfig(**VISION))
    with pytest.raises(OptionError, match="has weights that are not in memory"):
        sinkscope.treat(empty, Gate())
    with pytest.raises(OptionError, match=r"a compiled model; .* treat it first"):
        sinkscope.treat(torch.compile(model("vit"), backend="eager"), Gate())  # type: ignore[type-var]
    pair = nn.ModuleList([model("vit"), model("bert")])
    with pytest.raises(OptionError, match=r"ModuleList holds 2 models: 0\.vit \(vit\), 1 \(bert\)"):
        sinkscope.treat(pair, Gate())


def test_timm_models_with_other_attention() -> None:
    timm: Any = pytest.importorskip("timm", reason="the extra timm is not installed")
    size = {"img_size": 15, "patch_size": 5, "embed_dim": 21, "depth": 2, "num_heads": 3}
    other = timm.create_model("vit_tiny_patch16_224", attn_layer="diff", **{**size, "embed_dim": 24, "num_heads": 2})
    with pytest.raises(OptionError, match=r"blocks\.0\.attn is DiffAttention; expected plain attention"):
        sinkscope.treat(other, Gate())
    gated = timm.create_model("vit_tiny_patch16_224", **size)
    for block in gated.blocks:
        block.attn.gate = nn.Linear(21, 21)
    with pytest.raises(OptionError, match=r"gate: blocks\.0\.attn has a gate of its own"):
        sinkscope.treat(gated.eval(), Gate())
    x = torch.randn(2, 3, 15, 15)
    treated = sinkscope.treat(gated, LearnedSink(), probe=x)  # its own gate goes on working beside others
    torch.testing.assert_close(treated(x), gated(x), rtol=1e-4, atol=1e-5)


def test_parts_of_treated_models() -> None:
    treated = sinkscope.treat(model("llama"), Gate())
    with pytest.raises(OptionError, match="LlamaModel is part of a treated model, or holds one"):
        sinkscope.treat(treated.model, OffByOne(), inplace=True)
    with pytest.raises(OptionError, match="ModuleList is part of a treated model, or holds one"):
        sinkscope.treat(nn.ModuleList([treated]), OffByOne(), inplace=True)
    with pytest.raises(OptionError, match=r"ModuleList is not treated, but its part 0 is; .* pass that one"):
        treat.added(nn.ModuleList([treated]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gate("round"), "gate: kind is 'round'; expected headwise or elementwise"),  # type: ignore[arg-type]
        (lambda: Gate(position="key"), "gate: position is 'key'; expected output or value"),  # type: ignore[arg-type]
        (lambda: Gate(start=1.0), "gate: start is 1.0; expected a number between 0 and 1"),
        (lambda: LearnedSink(start=float("inf")), "learned-sink: start is inf; expected a finite number, or None"),
        (lambda: HeadNorm(eps=0.0), "head-norm: eps is 0.0; expected a number above 0"),
        (lambda: ClippedSoftmax(zeta=0.5), "clipped-softmax: zeta is 0.5; expected a number from 1 on"),
        (lambda: GlobalPathway(width=0), "global-pathway: width is 0; expected a width of 1 or more"),
        (lambda: Form("softpik"), "there is no attention form softpik; expected one of softpick"),
        (lambda: Form("softpick", epss=1), "softpick has no option epss; expected one of eps"),
        (lambda: Form("goat"), "form: goat does more than replace the softmax"),
        (lambda: Form("global-pathway"), "form: global-pathway does more than replace the softmax"),
        (lambda: Form("gate-projection"), "form: gate-projection does more than replace the softmax"),
    ],
)
def test_options_that_do_not_exist(make: Callable[[], object], message: str) -> None:
    with pytest.raises(OptionError, match=message.replace("(", r"\(")):
        make()


@pytest.mark.parametrize("layers", [(3,), (-1, 0), ()])
def test_layers_that_do_not_exist(layers: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match=r"gate for layers .*; expected some of 0 to 2; next: correct layers"):
        sinkscope.treat(model("vit"), Gate(layers=layers))


def test_lists_that_are_none() -> None:
    with pytest.raises(OptionError, match=r"no treatment; expected one or more"):
        sinkscope.treat(model("vit"), [])
    with pytest.raises(OptionError, match=r"'gate' as a treatment; expected objects such as"):
        sinkscope.treat(model("vit"), ["gate"])  # type: ignore[list-item]
    with pytest.raises(OptionError, match=r"a model of type str; expected a torch module"):
        sinkscope.treat("zoo:minilm-l6", Gate())  # type: ignore[type-var]


def test_pathways_of_causal_models() -> None:
    with pytest.raises(OptionError, match=r"global-pathway for model\.layers\.0\.self_attn, which is causal"):
        sinkscope.treat(model("llama"), GlobalPathway())


def test_masks_and_dropout_that_cannot_be_kept() -> None:
    treated, ids = sinkscope.treat(model("bert"), [AttentionBias(weighed=False), GlobalPathway()]), example("bert")
    mask = torch.zeros(2, 1, 11, 11)
    mask[..., 3] = 0.5
    with pytest.raises(OptionError, match=r"an attention mask that adds to scores; .* pass a boolean mask"):
        treated(ids, attention_mask=mask)
    causal = torch.ones(2, 1, 11, 11, dtype=torch.bool).tril()
    with pytest.raises(OptionError, match=r"global-pathway: a mask that hides different tokens from different queries"):
        treated(ids, attention_mask=causal)
    gpt2 = sinkscope.treat(model("gpt2"), Gate()).train()
    with pytest.raises(OptionError, match=r"dropout of 0\.1 on the weights of treated attention; .* call eval\(\)"):
        gpt2(example("gpt2"))
    assert copy.deepcopy(gpt2.eval())(example("gpt2")).logits.isfinite().all()


def test_slots_are_ordered() -> None:
    wanted = ["registers", "prefix", "values", "form", "norm", "gate", "pathway"]
    assert [slot for slot in ORDER if slot in wanted] == wanted
    treatments = [Gate(), Gate(position="value"), LearnedSink(), HeadNorm(), GlobalPathway()]
    treated = sinkscope.treat(model("vit"), treatments, probe=example("vit"))
    container = treated.vit.layers[0].attention.sinkscope
    assert list(container.parts) == ["values", "form", "norm", "gate", "pathway"]
