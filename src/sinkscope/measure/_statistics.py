"""Every event column of one attention call, for every input and head at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sinkscope.capture import HIDDEN_BIAS, AttentionCall
from sinkscope.measure import _kernels
from sinkscope.measure._columns import column_sums, fused_arguments
from sinkscope.measure._visibility import Visibility, visibility
from sinkscope.measure._writes import WriteGeometry, stable_rank, write_norms

TOP = 4


@dataclass(frozen=True)
class CallStatistics:
    """One value per input and head; NaN, or -1 for positions, where the quantity is not defined.

    Definitions: DESIGN.md, "Words"; columns of the same names in the artifact. `received` is the mass of every key,
    `energy` holds mean_j |v_j|, mean_j |u_j|, max_j |u_j| and |U|_F / sqrt(n).
    """

    sink: Int[Tensor, "batch heads"]
    mass: Float[Tensor, "batch heads"]
    mass_se: Float[Tensor, "batch heads"] | None
    top_sinks: Int[Tensor, "batch heads top"]
    top_masses: Float[Tensor, "batch heads top"]
    routed: Float[Tensor, "batch heads"]
    min_mass: Float[Tensor, "batch heads"]
    value_ratio: Float[Tensor, "batch heads"]
    update_ratio: Float[Tensor, "batch heads"]
    stable_rank: Float[Tensor, "batch heads"]
    diagonal: Float[Tensor, "batch heads"]
    entropy: Float[Tensor, "batch heads"]
    entropy_share: Float[Tensor, "batch heads"]
    hidden_norm: Float[Tensor, "batch heads"]
    hidden_norm_median: Float[Tensor, "batch heads"]
    virtual_mass: Float[Tensor, "batch heads"]
    received: Float[Tensor, "batch heads tokens"]
    energy: Float[Tensor, "batch heads 4"]
    sink_value: Float[Tensor, "batch heads dim"]
    sink_energy: Float[Tensor, "batch heads"]
    ordinary_energy: Float[Tensor, "batch heads"]


@dataclass(frozen=True)
class Attended:
    """What the weights say: the part of the statistics that sampling replaces."""

    received: Float[Tensor, "batch heads tokens"]
    sink: Int[Tensor, "batch heads"]
    mass_se: Float[Tensor, "batch heads"] | None
    routed: Float[Tensor, "batch heads"]
    min_mass: Float[Tensor, "batch heads"]
    diagonal: Float[Tensor, "batch heads"]
    entropy: Float[Tensor, "batch heads"]
    entropy_share: Float[Tensor, "batch heads"]
    virtual_mass: Float[Tensor, "batch heads"]


def measure_call(
    call: AttentionCall,
    valid: Bool[Tensor, "batch tokens"],
    geometry: WriteGeometry | None,
    attend: Callable[[AttentionCall, Visibility], Attended] | None = None,
) -> CallStatistics:
    """Measure a self-attention call.

    **Arguments:**

    - `valid`: tokens that are no padding.
    - `geometry`: of the call's projection; None makes update_ratio and stable_rank NaN.
    - `attend`: how to read the weights; None reads all queries exactly.
    """
    seen = visibility(call, valid)
    attended = (attend or attend_exactly)(call, seen)
    candidates = attended.received.masked_fill(~seen.candidate.expand_as(attended.received), -torch.inf)
    top_masses, top_sinks = candidates.topk(min(TOP, candidates.shape[-1]), -1)
    absent = top_masses.isinf()
    sink, none = attended.sink, attended.sink < 0
    at = sink.clamp(min=0)

    v = call.v[:, :, : valid.shape[1]].to(attended.received.dtype)
    heads = call.shape[1]
    groups = heads // v.shape[1]
    value_norms = torch.linalg.vector_norm(v, dim=-1).repeat_interleave(groups, 1)
    value_ratio, value_mean = _ratio_to_others(value_norms, at, valid)
    of_head = torch.arange(heads, device=v.device) // groups
    rows = torch.arange(len(v), device=v.device)[:, None]
    sink_value = v[rows, of_head, at]

    undefined = torch.full_like(value_ratio, torch.nan)
    update_ratio = rank = sink_energy = ordinary_energy = write_mean = write_max = write_rms = undefined
    if geometry is not None:
        norms = write_norms(v, geometry)
        update_ratio, write_mean = _ratio_to_others(norms, at, valid)
        write_max = norms.masked_fill(~valid[:, None], 0).amax(-1)
        rank, frobenius = stable_rank(call, geometry, seen.queries)
        write_rms = (frobenius / seen.queries.sum(1, keepdim=True)).sqrt()
        sink_energy = _pick(norms, at).square()
        ordinary_energy = _sum_of_others(norms.square(), at, valid) / (valid.sum(1, keepdim=True) - 1)
    hidden = hidden_median = undefined
    if call.hidden_norms is not None:
        masked = call.hidden_norms.to(v.dtype).masked_fill(~valid, torch.nan)
        hidden = call.hidden_norms.to(v.dtype)[rows, at]
        hidden_median = masked.nanquantile(0.5, dim=1, keepdim=True).expand_as(hidden)

    def defined(x: Tensor) -> Tensor:
        return x.masked_fill(none, torch.nan)

    return CallStatistics(
        sink=sink,
        mass=defined(_pick(attended.received, at)),
        mass_se=attended.mass_se,
        top_sinks=top_sinks.masked_fill(absent, -1),
        top_masses=top_masses.masked_fill(absent, torch.nan),
        routed=defined(attended.routed),
        min_mass=defined(attended.min_mass),
        value_ratio=defined(value_ratio),
        update_ratio=defined(update_ratio),
        stable_rank=rank,
        diagonal=attended.diagonal,
        entropy=attended.entropy,
        entropy_share=attended.entropy_share,
        hidden_norm=defined(hidden),
        hidden_norm_median=hidden_median,
        virtual_mass=attended.virtual_mass,
        received=attended.received,
        energy=torch.stack([value_mean, write_mean, write_max, write_rms], -1),
        sink_value=sink_value,
        sink_energy=defined(sink_energy),
        ordinary_energy=defined(ordinary_energy),
    )


def attend_exactly(call: AttentionCall, seen: Visibility) -> Attended:
    """Statistics of the weights over all valid queries."""
    sums, entropies = column_sums(call, seen.queries)
    received = sums / seen.queries_of_key.clamp(min=1)
    sink = choose_sink(received, seen)
    weights, sees, own = sink_and_own(call, sink.clamp(min=0), seen)
    count = sees.sum(-1)
    n = seen.queries.sum(1, keepdim=True)
    valid = seen.queries[:, None]
    entropy = entropies.masked_fill(~valid, 0).sum(-1) / n
    several = (seen.keys_of_query > 1) & valid
    shares = entropies / seen.keys_of_query.clamp(min=2).log()
    virtual = call.virtual_keys + call.extra_columns > 0
    return Attended(
        received=received,
        sink=sink,
        mass_se=None,
        routed=((weights >= 0.5) & sees).sum(-1) / count,
        min_mass=weights.masked_fill(~sees, torch.inf).amin(-1),
        diagonal=own.masked_fill(~valid, 0).sum(-1) / n,
        entropy=entropy,
        entropy_share=shares.masked_fill(~several, 0).sum(-1) / several.sum(-1),
        virtual_mass=1 - sums.sum(-1) / n if virtual else torch.zeros_like(entropy),
    )


def choose_sink(received: Float[Tensor, "batch heads tokens"], seen: Visibility) -> Int[Tensor, "batch heads"]:
    """The candidate of largest mass, -1 where no key is a candidate."""
    candidate = seen.candidate.expand_as(received)
    sink = received.masked_fill(~candidate, -torch.inf).argmax(-1)
    return sink.masked_fill(~candidate.any(-1), -1)


def sink_and_own(
    call: AttentionCall, sink: Int[Tensor, "batch heads"], seen: Visibility
) -> tuple[
    Float[Tensor, "batch heads queries"], Bool[Tensor, "batch heads queries"], Float[Tensor, "batch heads queries"]
]:
    """A_is for every query, which valid queries may see s, and A_ii for every query."""
    rows = torch.arange(sink.shape[0], device=sink.device)[:, None]
    heads = torch.arange(sink.shape[1], device=sink.device)
    sees = seen.queries[:, None].expand(-1, sink.shape[1], -1)
    if call.weights is not None:
        dtype = torch.promote_types(call.weights.dtype, torch.float32)
        if call.visible is not None:
            sees = sees & call.visible[rows, 0, :, sink]
        own = call.weights.diagonal(dim1=-2, dim2=-1)
        return call.weights[rows, heads, :, sink].to(dtype), sees, own.to(dtype)
    q, k, lse, mask = fused_arguments(call)
    to_sink, to_own = (scores * call.scale for scores in _products(q, k, sink))
    if mask is not None:
        whole = mask.expand(*q.shape[:3], k.shape[2])
        column = whole[rows, heads, :, sink]
        to_sink, to_own = to_sink + column, to_own + whole.diagonal(dim1=-2, dim2=-1)
        sees = sees & (column > HIDDEN_BIAS)
    if call.causal:
        sees = sees & (torch.arange(q.shape[2], device=q.device) >= sink[..., None])
    return (to_sink - lse).exp(), sees, (to_own - lse).exp()


def _products(q: Tensor, k: Tensor, sink: Tensor) -> tuple[Tensor, Tensor]:
    if _kernels.available(q, k):
        return _kernels.dots(q, k, sink)
    groups = q.shape[1] // k.shape[1]
    keys = k.repeat_interleave(groups, 1)
    chosen = keys.gather(2, sink[..., None, None].expand(-1, -1, 1, k.shape[3]))
    return (q * chosen).sum(-1), (q * keys).sum(-1)


def _pick(x: Tensor, at: Tensor) -> Tensor:
    return x.gather(-1, at[..., None]).squeeze(-1)


def _ratio_to_others(norms: Tensor, at: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """|x_s| / mean over the other valid tokens of |x_j|, and the mean over all valid tokens."""
    n = valid.sum(1, keepdim=True)
    mean = norms.masked_fill(~valid[:, None], 0).sum(-1) / n
    return _pick(norms, at) / (_sum_of_others(norms, at, valid) / (n - 1)), mean


def _sum_of_others(x: Tensor, at: Tensor, valid: Tensor) -> Tensor:
    """Over valid tokens but `at`, left out before the sum: next to a massive one the others would be lost in it."""
    return x.masked_fill(~valid[:, None], 0).scatter(-1, at[..., None], 0).sum(-1)
