"""The tokenizer of a transformers model."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from sinkscope._errors import InputError
from sinkscope.models._hub import hub_answers
from sinkscope.models._quiet import quiet
from sinkscope.models._tokens import TokenTable, affixes
from sinkscope.models._types import Role, TextBatch, TokenLayout
from sinkscope.models._weights import first_line

_UNLIMITED = 10**9
_PROBE = "a"


class HFText:
    """A `TextCodec` over a transformers tokenizer; `module` tells the limit of positions and the arguments taken.

    Padding is on the tokenizer's own side. On the left, position ids count real tokens only, as in generation, so
    that a padded text gets the positions it would have alone. SigLIP pads every text to its full context without a
    mask, as it was trained: there the padding is real, with role `pad`.
    """

    def __init__(self, tokenizer: Any, module: nn.Module) -> None:
        self._tokenizer = tokenizer
        self._takes = inspect.signature(module.forward).parameters
        self._full = _position_limit(module) if _pads_to_full_context(module) else None
        found = affixes(self.content(_PROBE), self.encode(_PROBE))
        if found is None:
            raise InputError(
                f"the tokenizer {type(tokenizer).__name__}, which changes a text when it adds its special tokens",
                "special tokens before and after the text",
                "tokenize yourself and pass token ids as a tensor or dict",
            )
        self._before, self._after = found
        limits = [_position_limit(module), tokenizer.model_max_length]
        if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
            limits = [limit - 1 if limit else None for limit in limits]  # the decoder reads a start token more
        self._max_length = min((limit for limit in limits if limit and limit < _UNLIMITED), default=None)
        self._table = TokenTable(special_roles(tokenizer), self._surface)
        fillers = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self._filler = next(token for token in fillers if token is not None)

    @property
    def max_length(self) -> int | None:
        return self._max_length

    @property
    def overhead(self) -> int:
        return len(self._before) + len(self._after)

    def content(self, text: str) -> list[int]:
        # Not verbose: a text longer than the model's maximum is cut into windows, and no cause for a warning.
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, verbose=False)["input_ids"])

    def wrap(self, content: Sequence[int]) -> list[int]:
        return [*self._before, *content, *self._after]

    def collate(self, rows: Sequence[Sequence[int]]) -> TextBatch:
        length = self._full or max(len(row) for row in rows)
        left = self._tokenizer.padding_side == "left"
        ids = torch.full((len(rows), length), self._filler, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            place = slice(length - len(row), length) if left else slice(0, len(row))
            ids[number, place] = torch.tensor(row)
            mask[number, place] = 1
        layouts = self._table.layouts(ids.tolist(), mask.bool())
        if self._full is not None or bool(mask.all()):
            return TextBatch((), {"input_ids": ids}, None, layouts)
        kwargs = {"input_ids": ids, "attention_mask": mask}
        if left and "position_ids" in self._takes:
            kwargs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return TextBatch((), kwargs, mask.bool(), layouts)

    def layouts(
        self, ids: Sequence[Sequence[int]], valid: Bool[Tensor, "batch tokens"] | None
    ) -> tuple[TokenLayout, ...]:
        return self._table.layouts(ids, valid)

    def _surface(self, token: int) -> str:
        text = str(self._tokenizer.decode([token], clean_up_tokenization_spaces=False))
        spaced = str(self._tokenizer.convert_ids_to_tokens(token)).startswith("\u2581")
        return f" {text}" if spaced and not text.startswith(" ") else text


def hf_text(source: str, module: nn.Module, trust_remote_code: bool) -> HFText:
    """The tokenizer saved beside the model. Raises `InputError` if there is none that can be used."""
    from transformers import AutoTokenizer

    offline = not Path(source).is_dir() and not hub_answers()
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                source, trust_remote_code=trust_remote_code, local_files_only=offline
            )
    except Exception as error:
        # Missing, unreadable and unknown tokenizers raise OSError, ValueError, KeyError, TypeError and ImportError.
        raise _no_tokenizer(source, first_line(error)) from None
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # some classes make an empty one where there are no files
        raise _no_tokenizer(source, "it knows no words")
    return HFText(tokenizer, module)


def _no_tokenizer(source: str, reason: str) -> InputError:
    return InputError(
        f"no usable tokenizer for {source} ({reason})",
        "tokenizer.json and tokenizer_config.json beside the model",
        "add the files, or pass token ids as a tensor or dict",
    )


def special_roles(tokenizer: Any) -> dict[int, Role]:
    roles: dict[int, Role] = {}
    named: tuple[tuple[str, Role], ...] = (("cls", "cls"), ("bos", "bos"), ("sep", "sep"), ("mask", "mask"))
    for name, role in named:
        token = getattr(tokenizer, f"{name}_token_id", None)
        if token is not None:
            roles.setdefault(token, role)
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        roles.setdefault(tokenizer.pad_token_id, "pad")
    added = (token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special)
    for token in (*tokenizer.all_special_ids, *added):
        roles.setdefault(token, "special")
    return roles


def _position_limit(module: nn.Module) -> int | None:
    for name, part in module.named_modules():
        # RoBERTa and its kin start to count positions behind the padding index.
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding) and part.padding_idx is not None:
            return part.num_embeddings - part.padding_idx - 1
    config = getattr(module, "config", None)
    if config is None:
        return None
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None


def _pads_to_full_context(module: nn.Module) -> bool:
    return getattr(getattr(module, "config", None), "model_type", None) in ("siglip_text_model", "siglip2_text_model")
