"""What a head sees, and what it makes of it, computed from weights and hidden states alone.

None of this uses the capture or the statistics of sinkscope: the truth of a planted head must not depend on the tool
that is scored on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._errors import CaptureError, InputError
from ..models import Batch, Inputs, Model
from ._plant_weights import AttentionLayer, HeadWeights

MIN_QUERIES = 8
"""A candidate sink has at least max(8, n/4) valid queries."""

_AGREEMENT = 1e-3


@dataclass(frozen=True)
class States:
    """What the attention of one layer reads, for all inputs, in float64.

    - `x`: input of the linear maps of queries, keys and values.
    - `valid`: tokens that are no padding.
    - `roles`: role of every token, "" where it is not known.
    - `causal`: token i sees tokens up to i.
    - `rotary`: cosines and sines of the rotary embedding, None without one.
    """

    x: Float[Tensor, "inputs tokens residual"]
    valid: Bool[Tensor, "inputs tokens"]
    roles: tuple[tuple[str, ...], ...]
    causal: bool
    rotary: tuple[Float[Tensor, "inputs tokens head_dim"], Float[Tensor, "inputs tokens head_dim"]] | None

    def part(self, chosen: Int[Tensor, " part"]) -> States:
        """The states of some of the inputs."""
        rotary = None if self.rotary is None else (self.rotary[0][chosen], self.rotary[1][chosen])
        roles = tuple(self.roles[int(number)] for number in chosen)
        return replace(self, x=self.x[chosen], valid=self.valid[chosen], roles=roles, rotary=rotary)

    @property
    def visible(self) -> Bool[Tensor, "inputs queries keys"]:
        """Which valid query may see which valid key."""
        seen = self.valid[:, :, None] & self.valid[:, None, :]
        return seen.tril() if self.causal else seen

    @property
    def candidates(self) -> Bool[Tensor, "inputs tokens"]:
        """Tokens that enough queries may see."""
        least = (self.valid.sum(1) / 4).clamp(min=MIN_QUERIES)
        enough = self.visible.sum(1) >= least[:, None] if self.causal else self.valid
        return enough & self.valid


def merged(supply: Inputs) -> Batch:
    """All inputs as one batch. **Raises:** `InputError` without inputs, or with batches of different shapes."""
    batches = [batch for batch in supply.batches() if batch.names]
    if not batches:
        raise InputError("no input to plant with", "24 inputs or more", "give more inputs")
    if len(batches) == 1:
        return batches[0]

    def joined(values: Sequence[Any], rows: Sequence[int]) -> Any:
        tensors = all(isinstance(v, Tensor) and v.ndim and len(v) == n for v, n in zip(values, rows, strict=True))
        if not tensors:
            return values[0]
        if len({v.shape[1:] for v in values}) > 1:
            raise InputError(
                f"inputs of different shapes, such as {tuple(values[0].shape[1:])} and {tuple(values[-1].shape[1:])}",
                "batches of one shape",
                "put all inputs in one batch, in which they are padded (batch_size)",
            )
        return torch.cat(list(values))

    rows = [len(batch.names) for batch in batches]
    if len({frozenset(batch.kwargs) for batch in batches}) > 1:
        raise InputError("batches with and without padding", "batches of one shape", "put all inputs in one batch")
    masked = any(batch.valid is not None for batch in batches)
    return replace(
        batches[0],
        names=tuple(name for batch in batches for name in batch.names),
        args=tuple(joined(values, rows) for values in zip(*(batch.args for batch in batches), strict=True)),
        kwargs={name: joined([batch.kwargs[name] for batch in batches], rows) for name in batches[0].kwargs},
        valid=torch.cat([batch.valid for batch in batches if batch.valid is not None]) if masked else None,
        layouts=tuple(layout for batch in batches for layout in batch.layouts),
        pictures=(),
    )


@contextmanager
def watched(jobs: Sequence[tuple[AttentionLayer, Callable[[States], None]]], batch: Batch) -> Iterator[None]:
    """Calls each function with what its layer reads, just before the layer computes with it."""
    with ExitStack() as stack:
        for layer, function in jobs:
            for hook in _hooks(layer, function, batch):
                stack.callback(hook.remove)
        yield


def _hooks(layer: AttentionLayer, function: Callable[[States], None], batch: Batch) -> list[Any]:
    seen: dict[str, Any] = {}

    def enter(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        seen["rotary"] = kwargs.get("position_embeddings")

    def read(_module: Any, args: tuple[Any, ...]) -> None:
        x = args[0].detach().double().cpu()
        rotary = seen["rotary"]
        if rotary is not None:
            rotary = tuple(part.detach().double().cpu().expand(len(x), -1, -1) for part in rotary)
        valid = torch.ones(x.shape[:2], dtype=torch.bool) if batch.valid is None else batch.valid
        causal = bool(getattr(layer.module, "is_causal", False))
        seen["states"] = States(x, valid, _roles(batch, x.shape[1]), causal, rotary)
        function(seen["states"])

    def wrote(_module: Any, args: tuple[Any, ...]) -> None:
        agree(layer, seen["states"].part(torch.arange(1)), args[0].detach().double().cpu()[:1])

    return [
        layer.module.register_forward_pre_hook(enter, with_kwargs=True),
        layer.q.register_forward_pre_hook(read),
        layer.out.register_forward_pre_hook(wrote),
    ]


def outputs(model: Model, batch: Batch) -> list[Float[Tensor, "valid_tokens residual"]]:
    """Last hidden states of a model (behind its last norm, before any head) at the valid tokens of every input."""
    module: Any = model.module
    found: Tensor = replace(model, module=module.base_model).run(batch)[0].cpu()
    if batch.valid is None:
        return list(found)
    return [row[valid] for row, valid in zip(found, batch.valid, strict=True)]


def attend(
    weights: HeadWeights, states: States
) -> tuple[Float[Tensor, "inputs queries keys"], Float[Tensor, "inputs tokens head_dim"]]:
    """Attention weights and values of a head. Rows of queries that are padding are 0."""
    scores = scores_of(weights, states)
    return softmax(scores, states.visible), projected(states.x, weights.wv, weights.bv)


def scores_of(weights: HeadWeights, states: States) -> Float[Tensor, "inputs queries keys"]:
    """Scaled scores before the mask."""
    q, k = projected(states.x, weights.wq, weights.bq), projected(states.x, weights.wk, weights.bk)
    if states.rotary is not None:
        q, k = rotated(q, *states.rotary), rotated(k, *states.rotary)
    return q @ k.transpose(1, 2) * weights.scale


def softmax(
    scores: Float[Tensor, "inputs queries keys"], visible: Bool[Tensor, "inputs queries keys"]
) -> Float[Tensor, "inputs queries keys"]:
    """Over visible keys; 0 in rows without any."""
    return scores.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0.0)


def projected(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear map of the last dimension."""
    return x @ weight.T if bias is None else x @ weight.T + bias


def rotated(
    x: Float[Tensor, "inputs tokens head_dim"],
    cosine: Float[Tensor, "inputs tokens head_dim"],
    sine: Float[Tensor, "inputs tokens head_dim"],
) -> Float[Tensor, "inputs tokens head_dim"]:
    """Rotary embedding of pairs (c, c + head_dim / 2) (Su et al. 2021, as Llama has it)."""
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


def column_mass(
    attention: Float[Tensor, "inputs queries keys"], visible: Bool[Tensor, "inputs queries keys"]
) -> Float[Tensor, "inputs keys"]:
    """Mean weight that each key gets from the queries that see it."""
    return attention.sum(1) / visible.sum(1).clamp(min=1)


def _roles(batch: Batch, tokens: int) -> tuple[tuple[str, ...], ...]:
    layouts = batch.layouts or (None,) * len(batch.names)
    return tuple(("",) * tokens if layout is None else layout.roles for layout in layouts)


def agree(layer: AttentionLayer, states: States, found: Float[Tensor, "inputs tokens heads_times_dim"]) -> None:
    """**Raises:** `CaptureError` where the heads' outputs are not, within 0.1%, what these few lines compute."""
    for head in range(layer.heads):
        attention, values = attend(layer.read(head), states)
        out = found[..., head * layer.head_dim : (head + 1) * layer.head_dim]
        error = (attention @ values - out)[states.valid].norm() / found[states.valid].norm()
        if not error < _AGREEMENT:
            raise CaptureError(
                f"attention of {type(layer.module).__name__} that is not softmax(q k) v of linear maps "
                f"(output off by {float(error):.1%})",
                "plain attention, with or without a rotary embedding, causal or not",
                "plant in a DINOv2, ViT, BERT or Llama",
            )
