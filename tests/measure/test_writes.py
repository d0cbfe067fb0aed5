"""What a head writes, through d x d matrices only, against the write itself."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import Tensor

from sinkscope.capture import Projection
from sinkscope.measure import _kernels, write_geometry
from sinkscope.measure._writes import stable_rank, write_norms
from tests.measure._calls import expanded, fused_call

within_fixture = [HealthCheck.function_scoped_fixture]
DIMS = st.sampled_from([1, 2, 5, 7, 16, 31, 48, 64, 67])


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def written(v: Tensor, projection: Projection, heads: int) -> Tensor:
    """u_j = g * (W_O^h v_j) in float64: (batch, heads, tokens, residual)."""
    per_head = projection.weight.double().reshape(heads, -1, projection.weight.shape[1])
    u = expanded(v, heads) @ per_head
    return u if projection.layer_scale is None else u * projection.layer_scale.double()


@pytest.mark.usefixtures("kernels")
@settings(max_examples=60, deadline=None, suppress_health_check=within_fixture)
@given(
    dim=DIMS, kv_heads=st.integers(1, 3), groups=st.integers(1, 3), tokens=st.sampled_from([1, 3, 31, 33, 71]),
    residual=st.sampled_from([1, 3, 24, 97]), scaled=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_norms_are_those_of_the_written_vectors(
    dim: int, kv_heads: int, groups: int, tokens: int, residual: int, scaled: bool, seed: int
) -> None:
    """Also where the residual stream is narrower than the head."""
    heads = kv_heads * groups
    scale = normal(residual, seed=seed + 1) if scaled else None
    projection = Projection(normal(heads * dim, residual, seed=seed), None, scale)
    v = normal(2, tokens, kv_heads, dim, seed=seed + 2).transpose(1, 2)
    geometry = write_geometry(projection, heads, torch.float32)
    u = written(v, projection, heads)
    torch.testing.assert_close(write_norms(v, geometry).double(), u.norm(dim=-1), rtol=2e-5, atol=1e-5)
    inner = torch.einsum("bhid,hde,bhje->bhij", expanded(v, heads), geometry.gram.double(), expanded(v, heads))
    torch.testing.assert_close(inner, u @ u.mT, rtol=1e-4, atol=1e-3)
    assert torch.equal(geometry.factor, geometry.factor.triu())


@pytest.mark.usefixtures("kernels")
@settings(max_examples=60, deadline=None, suppress_health_check=within_fixture)
@given(
    dim=DIMS, heads=st.integers(1, 3), tokens=st.sampled_from([2, 31, 64, 65, 131]), seed=st.integers(0, 99),
    residual=st.sampled_from([3, 24, 97]), rank=st.sampled_from([1, 2, 64]),
)  # fmt: skip
def test_stable_rank_is_that_of_the_singular_values(
    dim: int, heads: int, tokens: int, residual: int, rank: int, seed: int
) -> None:
    """Of the rows of the given queries alone, from rank one to full rank."""
    projection = Projection(normal(heads * dim, residual, seed=seed), None)
    v = normal(2, heads, tokens, min(rank, dim), seed=seed + 1) @ normal(min(rank, dim), dim, seed=seed + 2)
    call = fused_call(normal(2, heads, tokens, dim, seed=seed + 3), normal(2, heads, tokens, dim, seed=seed + 4), v)
    queries = torch.rand(2, tokens, generator=torch.Generator().manual_seed(seed)) < 0.7
    queries[:, 0] = True
    geometry = write_geometry(projection, heads, torch.float32)
    found, energy = stable_rank(call, geometry, queries)
    for b in range(2):
        u = written(call.out[b : b + 1, :, queries[b]], projection, heads)[0]
        singular = torch.linalg.svdvals(u)
        frobenius = singular.square().sum(-1)
        expected = frobenius / singular[:, 0].square()
        torch.testing.assert_close(energy[b].double(), frobenius, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[b].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("kernels")
def test_a_head_that_writes_nothing_has_no_stable_rank() -> None:
    projection = Projection(normal(10, 7), None)
    call = fused_call(normal(1, 2, 13, 5, seed=1), normal(1, 2, 13, 5, seed=2), torch.zeros(1, 2, 13, 5))
    rank, energy = stable_rank(call, write_geometry(projection, 2, torch.float32), torch.ones(1, 13, dtype=torch.bool))
    assert rank.isnan().all()
    assert (energy == 0).all()


@pytest.mark.usefixtures("native")
@settings(max_examples=60, deadline=None, suppress_health_check=within_fixture)
@given(dim=DIMS, tokens=st.integers(0, 141), seed=st.integers(0, 99))
def test_the_compiled_gram_matrix(dim: int, tokens: int, seed: int) -> None:
    x = normal(2, tokens, 3, dim, seed=seed).transpose(1, 2)
    keep = torch.rand(2, tokens, generator=torch.Generator().manual_seed(seed)) < 0.6
    kept = x.double() * keep[:, None, :, None]
    torch.testing.assert_close(_kernels.gram(x, keep).double(), kept.mT @ kept, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures("native")
@settings(max_examples=100, deadline=None, suppress_health_check=within_fixture)
@given(dim=DIMS, rank=st.integers(1, 67), decay=st.sampled_from([0.0, 0.1, 1.0, 3.0]), seed=st.integers(0, 999))
def test_the_compiled_largest_eigenvalue(dim: int, rank: int, decay: float, seed: int) -> None:
    """From flat spectra, where the largest ones are close, to steep ones."""
    x = normal(5, dim, min(rank, dim), seed=seed) * torch.arange(1, min(rank, dim) + 1).float().pow(-decay)
    matrices = x @ x.mT
    expected = torch.linalg.eigvalsh(matrices.double())[..., -1]
    torch.testing.assert_close(_kernels.top_eigenvalue(matrices).double(), expected, rtol=2e-6, atol=0.0)


@pytest.mark.usefixtures("native")
def test_the_compiled_largest_eigenvalue_of_special_matrices() -> None:
    eye, zero = torch.eye(7), torch.zeros(7, 7)
    twice = torch.diag(torch.tensor([3.0, 1.0, 3.0, 0.0, 2.0, 3.0, 0.5]))
    broken = torch.full((7, 7), torch.nan)
    hidden = torch.zeros(7, 7)  # the largest diagonal entry is no part of the top eigenvector
    hidden[0, 0] = 2.0
    hidden[1:, 1:] = 1.5
    found = _kernels.top_eigenvalue(torch.stack([eye, zero, twice, broken, hidden]))
    assert found[:3].tolist() == pytest.approx([1.0, 0.0, 3.0], rel=1e-6)
    assert found[3].isnan()
    assert found[4].item() == pytest.approx(9.0, rel=1e-6)
