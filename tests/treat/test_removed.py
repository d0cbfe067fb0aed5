"""A form without its removed keys against its definition, written out on full matrices of weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sinkscope import attention
from sinkscope.attention import Attend, Softmax
from sinkscope.treat._removed import Removed, column_mass

HOW = ("mask", "redirect", "zero")
BATCH, HEADS, KV, TOKENS, DIM = 2, 6, 3, 11, 5


def call_of(causal: bool, masked: bool, per_head: bool, queries: int = TOKENS) -> tuple[Attend, Tensor]:
    """A call in float64 and which keys are removed, two at most per head."""
    torch.manual_seed(queries)
    q = torch.randn(BATCH, HEADS, queries, DIM, dtype=torch.float64)
    k, v = torch.randn(2, BATCH, KV, TOKENS, DIM, dtype=torch.float64)
    mask = None
    if masked:
        mask = torch.ones(BATCH, 1, 1, TOKENS, dtype=torch.bool)
        mask[1, ..., :3] = False
    removed = torch.zeros(BATCH, HEADS if per_head else 1, TOKENS, dtype=torch.bool)
    removed.scatter_(-1, torch.randint(3, TOKENS, (BATCH, removed.shape[1], 2)), True)
    removed[0, 0, 0] = True
    return Attend(q, k, v, mask, causal, 0.7, {}), removed


def expected(call: Attend, removed: Tensor, how: str, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Outputs and weights, by full matrices; `extra` is the logit of a column without a value."""
    queries, keys = call.q.shape[2], call.k.shape[2]
    k, v = (x.repeat_interleave(HEADS // KV, 1) for x in (call.k, call.v))
    scores = call.scale * call.q @ k.mT
    seen = torch.ones(BATCH, 1, queries, keys, dtype=torch.bool)
    if call.causal:
        seen = seen.tril()
    if call.mask is not None:
        seen = seen & call.mask
    own = torch.eye(keys, dtype=torch.bool)[keys - queries :]
    gone = removed[:, :, None] & ~own
    if how == "mask":
        seen = seen & ~gone
    column = (
        torch.full_like(scores[..., :1], -torch.inf)
        if extra is None
        else extra[:, None, None].expand_as(scores[..., :1])
    )
    weights = torch.cat([scores.masked_fill(~seen, -torch.inf), column], -1).softmax(-1).nan_to_num(0.0)[..., :-1]
    weights = weights * seen.any(-1, keepdim=True)
    if how != "mask":
        moved = (weights * gone).sum(-1, keepdim=True) * own
        weights = weights.masked_fill(gone, 0.0) + (moved if how == "redirect" else 0.0)
    return weights @ v, weights


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("sink", [False, True])
def test_form(how: Any, causal: bool, masked: bool, per_head: bool, sink: bool) -> None:
    call, removed = call_of(causal, masked, per_head)
    extra = torch.linspace(-1, 1, HEADS, dtype=torch.float64) if sink else None
    inner = attention.LearnedSink() if sink else Softmax()
    parameters = {"removed": removed, "own": torch.arange(TOKENS)[None, None]}
    if extra is not None:
        parameters["sink"] = extra
    leaves = [x.requires_grad_() for x in (call.q, call.k, call.v)]
    q, k, v = leaves
    form = Removed(inner, how, 3)
    out, weights = form(q, k, v, mask=call.mask, causal=causal, scale=0.7, parameters=parameters, need_weights=True)
    wanted = expected(call, removed, how, extra)
    torch.testing.assert_close(out, wanted[0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(weights, wanted[1], rtol=1e-9, atol=1e-9)
    grads = torch.autograd.grad(out.sin().sum(), leaves)
    for grad, right in zip(grads, torch.autograd.grad(wanted[0].sin().sum(), leaves), strict=True):
        torch.testing.assert_close(grad, right, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("how", HOW)
def test_form_beside_a_cache(how: Any) -> None:
    """The last queries of more keys: their own are the last ones."""
    call, removed = call_of(False, True, True, queries=2)
    removed[..., -1] = True
    parameters = {"removed": removed, "own": torch.arange(TOKENS - 2, TOKENS)[None, None]}
    out, weights = Removed(Softmax(), how, 4)(
        call.q, call.k, call.v, mask=call.mask, scale=0.7, parameters=parameters, need_weights=True
    )
    wanted = expected(call, removed, how)
    torch.testing.assert_close((out, weights), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("causal", [False, True])
def test_column_mass(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sinkscope.treat._removed._BLOCK", 3 * BATCH * HEADS * TOKENS)
    call, removed = call_of(causal, True, False)
    queries = torch.ones(BATCH, TOKENS, dtype=torch.bool)
    queries[1, 4:7] = False
    _, weights = expected(call, torch.zeros_like(removed), "mask")
    found = column_mass(Softmax(), {}, call, queries)
    torch.testing.assert_close(found, (weights * queries[:, None, :, None]).sum(2), rtol=1e-9, atol=1e-9)


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """Bytes of the largest tensor that an operation makes."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("causal", [False, True])
def test_memory_is_linear_in_tokens(how: Any, causal: bool) -> None:
    tokens = 509
    q, k, v = torch.randn(3, 1, 2, tokens, 7).unbind(0)
    removed = torch.zeros(1, 2, tokens, dtype=torch.bool)
    removed[0, 0, 3] = removed[0, 1, 11] = True
    parameters = {"removed": removed, "own": torch.arange(tokens)[None, None]}
    with torch.no_grad(), _Largest() as largest:  # type: ignore[no-untyped-call]  # untyped in torch
        Removed(Softmax(), how)(q, k, v, causal=causal, parameters=parameters)
    assert 0 < largest.bytes <= 2 * q.untyped_storage().nbytes() < tokens**2  # less than a mask of one head
