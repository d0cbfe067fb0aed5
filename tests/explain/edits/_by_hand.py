"""Edits from their definition: the model in float64 with its attention written out, one input at a time.

Nothing here comes from sinkscope. Attention is replaced by scores, a softmax and a product with values; an edit changes
the values of one head, or hides the sink from it and takes the softmax again. The final tokens are read by hooks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Change:
    """What one head does otherwise: `values` by key, or `hidden` the key it no longer sees."""

    call: int
    head: int
    values: dict[int, Tensor] = field(default_factory=dict)
    hidden: int | None = None


@dataclass
class Seen:
    """One pass: weights (batch, heads, queries, tokens), values (batch, heads, tokens, dim) and outputs per call; the
    last block's output, after the last norm too, and the logits."""

    weights: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    outs: list[Tensor] = field(default_factory=list)
    final: Tensor | None = None
    normed: Tensor | None = None
    logits: Tensor | None = None


class Attention:
    """Attention by its definition, call after call of one pass."""

    def __init__(self, change: Change | None = None, frozen: list[Tensor] | None = None) -> None:
        self.change, self.frozen, self.seen = change, frozen, Seen()

    def mix(self, weigh: Callable[[Tensor], Tensor], scores: Tensor, values: Tensor) -> Tensor:
        """`weigh` turns scores into weights, whatever its softmax looks like."""
        call = len(self.seen.weights)
        weights = weigh(scores)
        change = self.change
        if change is not None and self.frozen is not None and call > change.call:
            weights = self.frozen[call]
        if change is not None and call == change.call:
            if change.hidden is not None:
                hidden = scores.clone()
                hidden[:, change.head, :, change.hidden] = -torch.inf
                weights = weights.clone()
                weights[:, change.head] = weigh(hidden)[:, change.head]
            values = values.clone()
            for key, value in change.values.items():
                values[:, change.head, key] = value
        out = weights @ values
        self.seen.weights.append(weights)
        self.seen.values.append(values)
        self.seen.outs.append(out)
        return out


def softmax(scores: Tensor) -> Tensor:
    hidden = scores < -1e30  # a model may mask with a finite number
    return torch.softmax(scores.masked_fill(hidden, -torch.inf), -1).nan_to_num(0.0)


@contextmanager
def fused(attention: Attention) -> Iterator[None]:
    """In the place of torch's fused attention."""

    def sdpa(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        groups = query.shape[1] // key.shape[1]
        scores = query @ key.repeat_interleave(groups, 1).mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask
        return attention.mix(softmax, scores, value.repeat_interleave(groups, 1))

    with patch("torch.nn.functional.scaled_dot_product_attention", sdpa):
        yield


def eager(module: str) -> Callable[[Attention], Any]:
    """In the place of the eager attention of a transformers model, soft-capping and learned sinks included."""

    @contextmanager
    def replaced(attention: Attention) -> Iterator[None]:
        def forward(
            own: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **options: Any
        ) -> tuple[Tensor, None]:
            groups = query.shape[1] // key.shape[1]
            scores = query @ key.repeat_interleave(groups, 1).mT * scaling
            if options.get("softcap") is not None:
                scores = options["softcap"] * torch.tanh(scores / options["softcap"])
            scores = scores if mask is None else scores + mask

            def weigh(scores: Tensor) -> Tensor:
                if not hasattr(own, "sinks"):
                    return softmax(scores)
                sink = own.sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
                return softmax(torch.cat([scores, sink], -1))[..., :-1]

            return attention.mix(weigh, scores, value.repeat_interleave(groups, 1)).transpose(1, 2), None

        with patch(f"transformers.models.{module}.eager_attention_forward", forward):
            yield

    return replaced


class Program:
    """A model in float64.

    - `last`, `norm`: names of the last block and of the last norm; None without one.
    - `sequence_first`: the blocks have tokens before inputs.
    - `classes`: it returns logits of classes.
    """

    def __init__(
        self,
        model: nn.Module,
        last: str,
        norm: str | None,
        replaced: Callable[[Attention], Any] = fused,
        sequence_first: bool = False,
        classes: bool = False,
    ) -> None:
        self.model = copy.deepcopy(model).double().eval()
        self.last, self.norm, self.replaced = last, norm, replaced
        self.sequence_first, self.classes = sequence_first, classes

    def run(
        self, args: Sequence[Any], kwargs: dict[str, Any], change: Change | None = None, frozen: Any = None
    ) -> Seen:
        """One pass over one input, edited by `change`, later calls with the weights `frozen` if given."""
        attention = Attention(change, frozen)
        seen = attention.seen

        def keep(name: str) -> Callable[[Any, Any, Any], None]:
            def hook(_module: Any, _args: Any, output: Any) -> None:
                found = output if isinstance(output, Tensor) else output[0]
                swap = self.sequence_first and name == "final"
                setattr(seen, name, (found.transpose(0, 1) if swap else found)[0].detach().clone())

            return hook

        handles = [self.model.get_submodule(self.last).register_forward_hook(keep("final"))]
        if self.norm is not None:
            handles.append(self.model.get_submodule(self.norm).register_forward_hook(keep("normed")))
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with torch.no_grad(), self.replaced(attention):
                result = self.model(*args, **kwargs)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for handle in handles:
                handle.remove()
        found = result if self.classes else getattr(result, "logits", None)
        seen.logits = None if found is None else found[0].reshape(-1, found.shape[-1])
        return seen


def measures(
    before: Seen,
    after: Seen,
    valid: np.ndarray,
    recipients: np.ndarray,
    sink: int,
    ids: np.ndarray | None = None,
) -> dict[str, float]:
    """The columns of an edit, from their words."""
    counted = [i for i in np.flatnonzero(valid) if i != sink]
    found = {}
    for name, old, new in (("final", before.final, after.final), ("final_norm", before.normed, after.normed)):
        if old is not None and new is not None:
            p, q = old.numpy(), new.numpy()
            changed = np.mean([np.sum((q[i] - p[i]) ** 2) for i in counted])
            found[name] = float(np.sqrt(changed / np.mean([np.sum(p[i] ** 2) for i in counted])))
            d = np.array([q[i] - p[i] for i in np.flatnonzero(recipients)])
            energy = np.sum(d**2)
            found["common"] = float(len(d) * np.sum(d.mean(0) ** 2) / energy) if energy > 0 else np.nan
    if before.logits is not None and after.logits is not None:
        p, q = (x.log_softmax(-1).numpy() for x in (before.logits, after.logits))
        places = np.flatnonzero(valid) if len(p) > 1 else [0]
        found["output_kl"] = float(np.mean([np.sum(np.exp(p[i]) * (p[i] - q[i])) for i in places]))
        found["output_top1"] = float(np.mean([p[i].argmax() == q[i].argmax() for i in places]))
        if ids is not None:
            followed = [i for i in places if i + 1 < len(valid) and valid[i + 1]]
            losses = [-np.mean([x[i, ids[i + 1]] for i in followed]) for x in (p, q)]
            found["output_loss"] = float(losses[1] - losses[0])
    return found


def written(
    before: Tensor, after: Tensor, weight: Tensor, scale: Tensor | None, head: int, valid: np.ndarray, sink: int
) -> float:
    """Relative change of what a head writes; `weight` as nn.Linear stores it, outputs (queries, dim) of the head."""
    dim = before.shape[-1]
    own = weight[:, head * dim : (head + 1) * dim]
    u = [(x @ own.T) * (1.0 if scale is None else scale) for x in (before, after)]
    counted = [i for i in np.flatnonzero(valid) if i != sink]
    change = sum(float((u[1][i] - u[0][i]).square().sum()) for i in counted)
    return float(np.sqrt(change / sum(float(u[0][i].square().sum()) for i in counted)))
