"""Roles and surface forms of text tokens."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence

from jaxtyping import Bool
from torch import Tensor

from sinkscope.models._types import Role, TokenLayout

_UNDECODABLE = "\ufffd"


class TokenTable:
    """Role and surface form of token ids, worked out once per id.

    - `specials`: roles of the tokenizer's own tokens.
    - `surface`: an id to the text it stands for.

    Any other token is a `word` if its text has a letter, a digit or a combining mark, or is a piece of one (bytes
    that are no whole character); otherwise, also when it is white space only, it is `punctuation`.
    """

    def __init__(self, specials: Mapping[int, Role], surface: Callable[[int], str]) -> None:
        self._known: dict[int, tuple[Role, str]] = {}
        self._specials = specials
        self._surface = surface

    def layouts(
        self, ids: Sequence[Sequence[int]], valid: Bool[Tensor, "batch tokens"] | None
    ) -> tuple[TokenLayout, ...]:
        """One layout per row of ids; tokens that are not valid are `pad`."""
        layouts = []
        for number, row in enumerate(ids):
            entries = [self._entry(token) for token in row]
            real = [True] * len(row) if valid is None else valid[number].tolist()
            nowhere = (None,) * len(row)
            roles: tuple[Role, ...] = tuple(entry[0] if ok else "pad" for entry, ok in zip(entries, real, strict=True))
            layouts.append(TokenLayout(roles, nowhere, nowhere, tuple(text for _, text in entries)))
        return tuple(layouts)

    def _entry(self, token: int) -> tuple[Role, str]:
        if token not in self._known:
            text = self._surface(token)
            self._known[token] = self._specials.get(token) or _role(text), text
        return self._known[token]


def _role(text: str) -> Role:
    spoken = any(char == _UNDECODABLE or unicodedata.category(char)[0] in "LNM" for char in text)
    return "word" if spoken else "punctuation"


def affixes(bare: Sequence[int], whole: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """What a tokenizer puts before and after a text: the same text's ids without and with special tokens."""
    for start in range(len(whole) - len(bare) + 1):
        if list(whole[start : start + len(bare)]) == list(bare):
            return list(whole[:start]), list(whole[start + len(bare) :])
    return None
