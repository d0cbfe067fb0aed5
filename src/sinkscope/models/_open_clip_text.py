"""The tokenizer of an open_clip text tower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from sinkscope._errors import InputError
from sinkscope.models._tokens import TokenTable, affixes
from sinkscope.models._types import Role, TextBatch, TokenLayout
from sinkscope.models._weights import first_line


class OpenClipText:
    """A `TextCodec` over open_clip's tokenizers, which pad every text to the fixed context of the tower.

    Under the causal mask of CLIP no real token sees the padding after the end-of-text token: it is not valid. Towers
    without that mask (SigLIP) read their padding as they were trained to: it is valid, with role `pad`.
    """

    def __init__(
        self,
        content: Callable[[str], list[int]],
        before: Sequence[int],
        after: Sequence[int],
        filler: int,
        context: int,
        causal: bool,
        table: TokenTable,
    ) -> None:
        self._content = content
        self._before, self._after = list(before), list(after)
        self._filler = filler
        self._context = context
        self._causal = causal
        self._table = table

    @classmethod
    def of(cls, name: str, tower: nn.Module) -> OpenClipText:
        """The tokenizer that open_clip pairs with the model `name`. Raises `InputError` if it cannot be had."""
        import open_clip

        try:
            tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:
            # Tokenizers of the hub raise whatever their class raises when a file is missing.
            raise InputError(
                f"no tokenizer for open_clip:{name} ({first_line(error)})",
                "a network connection, or the tokenizer in the hub's local cache",
                "pass token ids as a tensor",
            ) from None
        causal = getattr(tower, "attn_mask", None) is not None
        context = int(tokenizer.context_length)
        if hasattr(tokenizer, "sot_token_id") and tokenizer.reduction_fn is None:
            start, end = tokenizer.sot_token_id, tokenizer.eot_token_id
            roles: dict[int, Role] = {start: "bos", end: "special"}
            table = TokenTable(roles, lambda token: str(tokenizer.decode([token])))
            return cls(tokenizer.encode, [start], [end], 0, context, causal, table)
        inner = getattr(tokenizer, "tokenizer", None)
        if not hasattr(tokenizer, "clean_fn") or inner is None or tokenizer.tokenizer_mode or tokenizer.strip_sep_token:
            raise _unusual(name, tokenizer)
        return cls._of_transformers(name, tokenizer, inner, context, causal)

    @classmethod
    def _of_transformers(cls, name: str, tokenizer: Any, inner: Any, context: int, causal: bool) -> OpenClipText:
        from sinkscope.models._hf_text import special_roles

        def content(text: str) -> list[int]:
            return list(inner(tokenizer.clean_fn(text), add_special_tokens=False)["input_ids"])

        found = affixes(content("a"), inner("a")["input_ids"])
        if found is None:
            raise _unusual(name, tokenizer)
        table = TokenTable(special_roles(inner), lambda token: str(inner.decode([token])))
        return cls(content, *found, inner.pad_token_id or 0, context, causal, table)

    @property
    def max_length(self) -> int:
        return self._context

    @property
    def overhead(self) -> int:
        return len(self._before) + len(self._after)

    def content(self, text: str) -> list[int]:
        return self._content(text)

    def encode(self, text: str) -> list[int]:
        return self.wrap(self._content(text))

    def wrap(self, content: Sequence[int]) -> list[int]:
        return [*self._before, *content, *self._after]

    def collate(self, rows: Sequence[Sequence[int]]) -> TextBatch:
        ids = torch.full((len(rows), self._context), self._filler, dtype=torch.long)
        real = torch.zeros_like(ids, dtype=torch.bool)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row)
            real[number, : len(row)] = True
        valid = real if self._causal and not bool(real.all()) else None
        return TextBatch((ids,), {}, valid, self._table.layouts(ids.tolist(), real))

    def layouts(
        self, ids: Sequence[Sequence[int]], valid: Bool[Tensor, "batch tokens"] | None
    ) -> tuple[TokenLayout, ...]:
        return self._table.layouts(ids, valid)


def _unusual(name: str, tokenizer: Any) -> InputError:
    return InputError(
        f"open_clip:{name}, whose tokenizer ({type(tokenizer).__name__}) rearranges its tokens",
        "special tokens before and after the text",
        "tokenize yourself and pass token ids as a tensor",
    )
