"""Planted calls whose statistics are known by hand or stretch the arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sinkscope.capture import AttentionCall, Projection
from tests._agreement import differences, measured
from tests.measure._calls import fused_call, reference_of, weights_call

TOKENS, DIM, RESIDUAL = 23, 5, 11


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def planted(length: float, keys: int = 3) -> AttentionCall:
    """Key `keys` takes nearly all attention in both heads; its value is `length` times as long as the others' are."""
    k = normal(2, 2, TOKENS, DIM, seed=1) * 0.1
    q = normal(2, 2, TOKENS, DIM, seed=2) * 0.1
    q[..., 0], k[:, :, keys, 0] = 9.0, 2.0
    v = normal(2, 2, TOKENS, DIM, seed=3)
    v = v / v.norm(dim=-1, keepdim=True)
    v[:, :, keys] *= length
    return fused_call(q, k, v, projection=Projection(normal(2 * DIM, RESIDUAL, seed=4), None, normal(RESIDUAL, seed=5)))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("length", [0.0, 1e-6, 1e-2, 1.0, 30.0, 1e4])
def test_sinks_of_any_strength(length: float) -> None:
    """From a value of nothing, where the others write, to one next to which they are nothing."""
    call, valid = planted(length), torch.ones(2, TOKENS, dtype=torch.bool)
    found = measured(call, valid)
    assert (found.sink == 3).all() and (found.routed == 1).all()
    for name, apart in differences(found, reference_of(call, valid)).items():
        assert apart.relative <= 2e-5, (name, apart)
    if length:
        torch.testing.assert_close(found.value_ratio, torch.full((2, 2), length), rtol=1e-5, atol=0.0)
    else:
        assert (found.value_ratio == 0).all() and (found.update_ratio == 0).all()


@pytest.mark.usefixtures("kernels")
def test_a_perfect_sink_by_hand() -> None:
    """All mass on key 2, whose value is half as long as the others: rank one, no entropy, everyone routed."""
    k, q, v = (torch.zeros(1, 1, 7, 2) for _ in range(3))
    q[..., 0], k[0, 0, 2, 0] = 100.0, 10.0
    v[..., 1], v[0, 0, 2, 1] = 2.0, 1.0
    projection = Projection(torch.tensor([[1.0, 0.0, 0.0], [0.0, 3.0, 4.0]]), None, torch.tensor([7.0, 1.0, 2.0]))
    found = measured(fused_call(q, k, v, scale=1.0, projection=projection), torch.ones(1, 7, dtype=torch.bool))
    by_hand = {
        "sink": 2, "mass": 1, "routed": 1, "min_mass": 1, "value_ratio": 0.5, "update_ratio": 0.5, "stable_rank": 1,
        "diagonal": 1 / 7, "entropy": 0, "entropy_share": 0, "virtual_mass": 0,
        "sink_energy": 3**2 + 8**2, "ordinary_energy": 4 * (3**2 + 8**2),
    }  # fmt: skip
    for name, value in by_hand.items():
        assert getattr(found, name).item() == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert found.hidden_norm.isnan().all()


@pytest.mark.usefixtures("kernels")
def test_uniform_attention_by_hand() -> None:
    """Every key has the same share: no sink stands out, the entropy is the largest, and the write is of rank one."""
    zero = torch.zeros(1, 2, 7, 3)
    projection = Projection(normal(6, RESIDUAL, seed=1), None)
    call = fused_call(zero, zero, normal(1, 2, 7, 3, seed=2), projection=projection)
    found = measured(call, torch.ones(1, 7, dtype=torch.bool))
    for name, value in {"mass": 1 / 7, "min_mass": 1 / 7, "diagonal": 1 / 7, "entropy": np.log(7)}.items():
        assert getattr(found, name).flatten().tolist() == pytest.approx([value] * 2, rel=1e-6), name
    assert (found.routed == 0).all()
    assert found.entropy_share.flatten().tolist() == pytest.approx([1, 1], rel=1e-6)
    assert found.stable_rank.flatten().tolist() == pytest.approx([1, 1], rel=1e-5)


def test_a_learned_sink_by_hand() -> None:
    """Every query keeps a quarter for the extra column, and halves what is left between itself and key 0."""
    a = torch.zeros(1, 1, 11, 11)
    a[0, 0, :, 0] = 0.375
    a[0, 0].diagonal().add_(0.375)
    found = measured(weights_call(a, normal(1, 1, 11, 3, seed=1), extra=1), torch.ones(1, 11, dtype=torch.bool))
    entropy = -(10 * 2 * 0.375 * np.log(0.375) + 0.75 * np.log(0.75)) / 11
    assert found.sink.item() == 0
    assert found.mass.item() == pytest.approx(0.375 * 12 / 11)
    assert found.virtual_mass.item() == pytest.approx(0.25)
    assert found.diagonal.item() == pytest.approx(0.375 * 12 / 11)
    assert found.entropy.item() == pytest.approx(entropy)
    assert found.routed.item() == pytest.approx(1 / 11)


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("causal", [False, True])
def test_an_input_of_one_token(causal: bool) -> None:
    """There is nothing to compare its value with, and a causal key needs eight queries."""
    one = normal(1, 2, 1, 3, seed=1)
    projection = Projection(normal(6, RESIDUAL, seed=2), None)
    found = measured(
        fused_call(one, one, one, causal=causal, projection=projection), torch.ones(1, 1, dtype=torch.bool)
    )
    assert (found.sink == 0).all()
    assert (found.mass == 1).all() and (found.diagonal == 1).all() and (found.entropy.abs() < 1e-6).all()
    assert found.value_ratio.isnan().all() and found.update_ratio.isnan().all() and found.entropy_share.isnan().all()
    assert found.stable_rank.flatten().tolist() == pytest.approx([1, 1], rel=1e-5)


@pytest.mark.usefixtures("kernels")
def test_no_candidate_is_no_sink_and_leaves_the_rest_defined() -> None:
    """Seven tokens under a causal mask: no key has eight queries."""
    x = normal(2, 2, 7, 3, seed=1)
    projection = Projection(normal(6, RESIDUAL, seed=2), None)
    call, valid = fused_call(x, x, x, causal=True, projection=projection), torch.ones(2, 7, dtype=torch.bool)
    found = measured(call, valid)
    assert (found.sink == -1).all() and (found.top_sinks == -1).all()
    assert found.top_masses.isnan().all()
    for name, apart in differences(found, reference_of(call, valid)).items():
        assert apart.relative <= 2e-5, (name, apart)
    assert not found.diagonal.isnan().any() and not found.stable_rank.isnan().any()
