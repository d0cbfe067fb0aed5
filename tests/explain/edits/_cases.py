"""Models to edit: the families of the capture tests, with what the independent program must know of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from torch import Tensor, nn

from sinkscope.attention import Attention as FormAttention
from sinkscope.models import Batch, Model
from tests._reference import ReferenceLayer
from tests.explain.edits._by_hand import Attention, Program, Seen, eager, fused
from tests.families._custom import HandAttention, HandModel
from tests.families._family import MAIN, Example, Family, noise, randomised
from tests.families.registry import FAMILIES

SIZES = (3, 2)
"""Inputs of the two batches."""
NAMES = tuple(f"input {number}" for number in range(sum(SIZES)))


@dataclass(frozen=True)
class Case:
    """A model, its inputs and the independent program.

    - `way`: how an edited pass is to run, as `sinkscope.explain.edits._passes` numbers it.
    - `layers`: which self-attention calls are edited, all others being as in the model.
    - `next_token`: the logits are of the next token.
    """

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[int], Example]
    last: str
    norm: str | None = None
    replaced: Callable[[Attention], Any] = fused
    way: int = 0
    layers: tuple[int, ...] = (0, 1)
    next_token: bool = False
    sequence_first: bool = False
    classes: bool = False
    dtype: torch.dtype = torch.float32
    reference: Callable[[int], list[ReferenceLayer]] | None = None

    @property
    def model(self) -> Model:
        module = _built(self.name)
        module = module if self.dtype == torch.float32 else copy.deepcopy(module).to(self.dtype)
        return Model(f"module:{type(module).__name__}", module, "unknown")

    @property
    def program(self) -> Program:
        return _program(self.name)

    def new_program(self) -> Program:
        return Program(_built(self.name), self.last, self.norm, self.replaced, self.sequence_first, self.classes)

    @property
    def inputs(self) -> Fixed:
        return Fixed(self.example(len(NAMES)))

    def plain(self) -> list[Seen]:
        """The unedited passes of all inputs, one by one."""
        return [self.program.run(*self.row(number)) for number in range(len(NAMES))]

    def row(self, number: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of one input in float64."""
        example = self.example(len(NAMES)).to(torch.float64).row(number)
        return example.args, dict(example.kwargs)

    def valid(self, number: int) -> Any:
        return self.example(len(NAMES)).valid[MAIN][number].numpy()


class Fixed:
    """The rows of an example in two batches."""

    n_batches = len(SIZES)

    def __init__(self, example: Example) -> None:
        self._example = example
        self.identity: Mapping[str, Any] = {}

    def batches(self, *, skip: frozenset[int] = frozenset(), rank: int = 0, world: int = 1) -> Iterator[Batch]:
        start = 0
        for index, size in enumerate(SIZES):
            rows = slice(start, start + size)
            start += size
            if index in skip:
                continue

            def cut(x: Any, rows: slice = rows) -> Any:
                return x[rows] if isinstance(x, Tensor) else x

            valid = self._example.valid[MAIN][rows]
            yield Batch(
                index,
                NAMES[rows],
                tuple(cut(x) for x in self._example.args),
                {name: cut(x) for name, x in self._example.kwargs.items()},
                valid=None if bool(valid.all()) else valid,
            )


def chosen(
    plain: list[Seen], layers: tuple[int, ...], heads: tuple[int, ...], valid: Callable[[int], Any]
) -> pd.DataFrame:
    """Rows to edit: per input, layer and head the valid key with the most weight over the valid queries. Later layers
    have one of the heads only."""
    rows = []
    for number, seen in enumerate(plain):
        for layer in layers:
            for head in heads if layer == 0 else heads[-1:]:
                shown = torch.from_numpy(valid(number))
                weights = seen.weights[layer][0, head][shown].sum(0)[: len(shown)]
                sink = int(weights.masked_fill(~shown, -1).argmax())
                mass = float(weights[sink] / shown.sum())
                rows.append({"input": NAMES[number], "layer": layer, "head": head, "sink": sink, "mass": mass})
    return pd.DataFrame(rows)


class FormModel(nn.Module):
    """Two residual blocks around an attention form that no kernel shows."""

    def __init__(self, form: str, causal: bool, kv_heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FormBlock(form, causal, kv_heads) for _ in range(2))
        self.norm = nn.LayerNorm(26)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.norm(x)
        return y


class FormBlock(nn.Module):
    """Attention and a perceptron."""

    def __init__(self, form: str, causal: bool, kv_heads: int) -> None:
        super().__init__()
        self.attn = FormAttention(26, 2, kv_heads=kv_heads, form=form, causal=causal)
        self.mlp = nn.Sequential(nn.Linear(26, 31), nn.GELU(), nn.Linear(31, 26))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        y: Tensor = x + self.mlp(x)
        return y


def _form(weigh: Callable[[Tensor], Tensor]) -> Callable[[Attention], Any]:
    """In the place of the module of an attention form, whose weights are `weigh` of its scores."""

    @contextmanager
    def replaced(attention: Attention) -> Iterator[None]:
        def forward(self: Any, x: Tensor) -> Tensor:
            sizes = [self.num_heads * 13, self.num_kv_heads * 13, self.num_kv_heads * 13]
            q, k, v = (part.unflatten(-1, (-1, 13)).transpose(1, 2) for part in self.qkv(x).split(sizes, -1))
            groups = self.num_heads // self.num_kv_heads
            scores = q @ k.repeat_interleave(groups, 1).mT * 13**-0.5
            if self.causal:
                scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
            out = attention.mix(weigh, scores, v.repeat_interleave(groups, 1))
            y: Tensor = self.proj(out.transpose(1, 2).flatten(2))
            return y

        with patch.object(FormAttention, "forward", forward):
            yield

    return replaced


@contextmanager
def _hand(attention: Attention) -> Iterator[None]:
    def forward(self: HandAttention, x: Tensor, padding: Tensor | None = None) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (3, -1)).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        out = attention.mix(lambda scores: torch.softmax(scores, -1), q @ k.mT * self.dim**-0.5, v)
        y: Tensor = self.to_out(out.transpose(1, 2).flatten(2))
        return y

    with patch.object(HandAttention, "forward", forward):
        yield


def off_by_one(scores: Tensor) -> Tensor:
    return scores.exp() / (1 + scores.exp().sum(-1, keepdim=True))


class SequenceFirst(nn.Module):
    """torch's own encoder with tokens before inputs, as is its default."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(21, 3, 29, batch_first=False)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y: Tensor = self.encoder(x.transpose(0, 1), src_key_padding_mask=padding).transpose(0, 1)
        return y


class Memory(nn.Module):
    """Blocks that read what the model keeps of its inputs: passes cannot begin in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MemoryBlock(self) for _ in range(2))
        self.norm = nn.LayerNorm(21)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = [x]
        for block in self.blocks:
            x = block(x)
        y: Tensor = self.norm(x)
        return y


class MemoryBlock(nn.Module):
    """Attention and a look at the model's inputs."""

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self.owner: list[Any] = [owner]
        self.attn = nn.MultiheadAttention(21, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.attn(x, x, x, need_weights=False)[0] + 0.3 * self.owner[0].kept[0]
        return y


def _tokens(batch: int, width: int, tokens: int = 17) -> Example:
    return Example((noise(batch, tokens, width),), valid={MAIN: torch.ones(batch, tokens, dtype=torch.bool)})


def _sequence_first(batch: int) -> Example:
    example = FAMILIES["encoder"].example(batch)
    return Example(example.args, {"padding": example.kwargs["src_key_padding_mask"]}, example.valid)


def _family(name: str, last: str, norm: str | None = None, **options: Any) -> Case:
    family: Family = FAMILIES[name]
    return Case(name, family.build, family.example, last, norm, reference=family.reference, **options)


CASES = {
    case.name: case
    for case in (
        _family("vit", "layers.1", "layernorm"),
        _family("dinov2-registers", "encoder.layer.1", "layernorm"),
        _family("bert", "encoder.layer.1"),
        _family("albert", "encoder.albert_layer_groups.0.albert_layers.0", layers=(1, 3)),
        _family("gpt2", "transformer.h.1", "transformer.ln_f", next_token=True),
        _family("llama-left", "model.layers.1", "model.norm", next_token=True),
        _family(
            "gemma2",
            "model.layers.1",
            "model.norm",
            replaced=eager("gemma2.modeling_gemma2"),
            next_token=True,
        ),
        _family(
            "gpt-oss",
            "model.layers.1",
            "model.norm",
            replaced=eager("gpt_oss.modeling_gpt_oss"),
            next_token=True,
            dtype=torch.float64,  # what redirect leaves to the learned sink is less than float32 resolves
        ),
        _family("timm-vit-reg", "blocks.1", "norm", classes=True),
        _family("encoder", "layers.1"),
        _family("mha-bias-kv", "attn", layers=(0,)),
        Case(
            "hand-plain",
            lambda: randomised(HandModel("plain")),
            lambda batch: _tokens(batch, 24, 19),
            "blocks.1",
            replaced=_hand,
            reference=FAMILIES["hand-plain"].reference,
        ),
        Case(
            "off-by-one",
            lambda: randomised(FormModel("off-by-one", True, 1), gain=0.9),
            lambda batch: _tokens(batch, 26),
            "blocks.1",
            "norm",
            replaced=_form(off_by_one),
        ),
        Case(
            "relu",
            lambda: randomised(FormModel("relu", False, 2)),
            lambda batch: _tokens(batch, 26),
            "blocks.1",
            "norm",
            replaced=_form(lambda scores: scores.relu() / scores.shape[-1]),
        ),
        Case(
            "sequence-first",
            lambda: randomised(SequenceFirst()),
            _sequence_first,
            "encoder.layers.1",
            way=1,
            sequence_first=True,
        ),
        Case("memory", lambda: randomised(Memory()), lambda batch: _tokens(batch, 21), "blocks.1", "norm", way=2),
    )
}


@cache
def _program(name: str) -> Program:
    return CASES[name].new_program()


@cache
def _built(name: str) -> nn.Module:
    return CASES[name].build()
