"""Who may see whom, counted, and which keys may be called a sink."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from sinkscope.measure._visibility import shown_rows, visibility
from tests._reference import candidates, visible_keys
from tests.measure._calls import fused_call, logits, weights_call
from tests.measure._strategies import Case, cases


def shown_in(case: Case) -> Tensor:
    """(batch, heads, tokens, tokens): the definition."""
    return logits(case.call)[..., : case.valid.shape[1]] > -torch.inf


@settings(max_examples=150, deadline=None)
@given(cases())
def test_counts_are_those_of_the_full_matrix(case: Case) -> None:
    seen, shown = visibility(case.call, case.valid), shown_in(case)
    queries = case.valid & shown.any(-1).any(1)
    assert torch.equal(seen.valid, case.valid)
    assert torch.equal(seen.queries, queries)
    of_key = (shown & queries[:, None, :, None]).sum(-2)
    assert torch.equal(seen.queries_of_key.expand_as(of_key), of_key)
    of_query = shown.sum(-1)
    assert torch.equal(seen.keys_of_query.expand_as(of_query), of_query)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_candidates_are_those_of_the_rule(case: Case) -> None:
    seen, shown = visibility(case.call, case.valid), shown_in(case)
    found = seen.candidate.expand(*shown.shape[:2], -1)
    for b in range(shown.shape[0]):
        for h in range(shown.shape[1]):
            expected = candidates(shown[b, h].numpy(), case.valid[b].numpy())
            assert found[b, h].nonzero().flatten().tolist() == expected


@settings(max_examples=60, deadline=None)
@given(cases())
def test_sampled_rows_are_rows_of_the_full_matrix(case: Case) -> None:
    batch, tokens = case.valid.shape
    sample = torch.arange(tokens).flip(0)[: max(1, tokens // 2)].expand(batch, -1)
    found, shown = shown_rows(case.call, sample), shown_in(case)
    expected = torch.stack([shown[b][:, sample[b]] for b in range(batch)])
    assert torch.equal(found.expand_as(expected), expected)


def call_of(visible: Tensor, causal: bool = False) -> Tensor:
    """Candidates of a call whose mask shows `visible` (batch, tokens, tokens)."""
    batch, tokens = visible.shape[:2]
    x = torch.zeros(batch, 1, tokens, 2)
    mask = torch.where(visible, 0.0, -torch.inf)[:, None]
    valid = visible.any(1)
    return visibility(fused_call(x, x, x, mask=mask, causal=causal), valid).candidate[:, 0]


@pytest.mark.parametrize(
    ("tokens", "causal", "window", "candidate"),
    [
        (5, False, None, 5),  # everyone sees everyone: no threshold
        (7, True, None, 0),  # no key has 8 queries
        (8, True, None, 1),
        (23, True, None, 16),  # the last with 8 queries is key 15
        (61, True, None, 46),  # n / 4 = 15.25: 16 queries, key 45
        (61, True, 16, 46),
        (61, True, 15, 54),  # too narrow for 16 queries: of the 15 that a key has at most a quarter is under 8
        (61, True, 61, 46),
        (61, True, 8, 54),
        (61, True, 7, 0),
    ],
)
def test_the_candidate_rule_by_hand(tokens: int, causal: bool, window: int | None, candidate: int) -> None:
    visible = visible_keys(torch.ones(1, tokens, dtype=torch.bool), causal, window)
    expected = torch.arange(tokens) < candidate
    assert torch.equal(call_of(visible)[0], expected)
    if causal and window is None:
        x = torch.zeros(1, 1, tokens, 2)
        flag = visibility(fused_call(x, x, x, causal=True), torch.ones(1, tokens, dtype=torch.bool))
        assert torch.equal(flag.candidate[0, 0], expected)


def test_padding_is_never_a_candidate_and_never_asked() -> None:
    valid = torch.tensor([[True] * 11 + [False] * 6, [False] * 4 + [True] * 13])
    for causal in (False, True):
        visible = visible_keys(valid, causal)
        x = torch.zeros(2, 1, 17, 2)
        call = fused_call(x, x, x, mask=torch.where(visible, 0.0, -torch.inf)[:, None])
        seen = visibility(call, valid)
        assert not (seen.candidate[:, 0] & ~valid).any()
        assert torch.equal(seen.queries, valid)
        n = valid.sum(1).tolist()
        assert seen.queries_of_key[:, 0].amax(1).tolist() == n
        if not causal:
            assert torch.equal(seen.candidate[:, 0], valid)


def test_the_weights_route_counts_what_its_softmax_did_not_mask() -> None:
    visible = visible_keys(torch.ones(2, 19, dtype=torch.bool), causal=True)
    weights = torch.where(visible, 1.0, 0.0)[:, None].expand(-1, 3, -1, -1)
    weights = weights / weights.sum(-1, keepdim=True)
    seen = visibility(weights_call(weights, torch.ones(2, 3, 19, 2), visible[:, None]), torch.ones(2, 19).bool())
    assert seen.queries_of_key[0, 0].tolist() == list(range(19, 0, -1))
    assert seen.keys_of_query[0, 0].tolist() == list(range(1, 20))
    assert seen.candidate[0, 0].sum() == 12


def test_long_sequences_are_counted_in_blocks_of_rows() -> None:
    """More rows than one block holds."""
    tokens = 1031
    past = torch.ones(tokens, tokens, dtype=torch.bool).tril() & ~torch.ones(tokens, tokens, dtype=torch.bool).tril(-67)
    x = torch.zeros(1, 1, tokens, 1)
    call = fused_call(x, x, x, mask=torch.where(past, 0.0, -torch.inf)[None, None])
    seen = visibility(call, torch.ones(1, tokens, dtype=torch.bool))
    assert seen.keys_of_query[0, 0].tolist() == [min(i + 1, 67) for i in range(tokens)]
    assert seen.queries_of_key[0, 0].tolist() == [min(tokens - j, 67) for j in range(tokens)]
