"""Roles of text tokens by what they stand for."""

from __future__ import annotations

import pytest
import torch

from sinkscope.models._tokens import TokenTable, affixes

SURFACES = ["cat", " 42", ".", " ...", "\n", "", "\u0301", "\u200b", "\ufffd", "naïve!", "№", "猫", "##s", "<s>"]
ROLES = [
    "word",
    "word",
    *["punctuation"] * 4,
    "word",
    "punctuation",
    "word",
    "word",
    "punctuation",
    "word",
    "word",
    "bos",
]


def test_a_token_is_a_word_if_it_has_a_letter_digit_or_mark() -> None:
    table = TokenTable({13: "bos"}, lambda token: SURFACES[token])
    (layout,) = table.layouts([list(range(14))], None)
    assert list(layout.roles) == ROLES
    assert layout.texts == tuple(SURFACES)


def test_tokens_that_are_not_valid_are_padding_and_every_id_is_looked_up_once() -> None:
    asked: list[int] = []

    def surface(token: int) -> str:
        asked.append(token)
        return "a"

    table = TokenTable({}, surface)
    valid = torch.tensor([[True, True, False], [False, True, True]])
    layouts = table.layouts([[5, 7, 5], [7, 5, 7]], valid)
    assert [layout.roles for layout in layouts] == [("word", "word", "pad"), ("pad", "word", "word")]
    assert asked == [5, 7]


@pytest.mark.parametrize(
    ("bare", "whole", "expected"),
    [([5], [1, 5, 2], ([1], [2])), ([5], [5], ([], [])), ([5, 7], [5, 3, 7], None), ([5], [1, 2, 5], ([1, 2], []))],
)
def test_affixes(bare: list[int], whole: list[int], expected: tuple[list[int], list[int]] | None) -> None:
    assert affixes(bare, whole) == expected
