"""What an edit changes in the model's output: the distribution over tokens or classes, and the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sinkscope.models import Batch


@dataclass(frozen=True)
class OutputChange:
    """`output_kl`, `output_top1` and `output_loss`; see EDIT_COLUMNS."""

    kl: float
    top1: float
    loss: float | None


def logits_of(
    module: nn.Module, result: Any
) -> Float[Tensor, "rows tokens words"] | Float[Tensor, "rows classes"] | None:
    """The logits that a forward returned: of two words or classes or more, per token or per input. A bare tensor counts
    when the module says that it has so many classes, else it may be features. None without such a head."""
    found = getattr(result, "logits", None)
    if found is None and isinstance(result, Tensor) and result.shape[-1] == getattr(module, "num_classes", None):
        found = result if result.dim() == 2 else None
    if not isinstance(found, Tensor) or found.dim() not in (2, 3) or found.shape[-1] < 2:
        return None
    return found


def token_ids(batch: Batch) -> Int[Tensor, "batch tokens"] | None:
    """The token ids of a batch, None for other inputs."""
    given = batch.kwargs.get("input_ids", batch.args[0] if batch.args else None)
    whole = isinstance(given, Tensor) and given.dim() == 2 and not given.is_floating_point()
    return given if whole else None


class Distribution:
    """The unedited output of one input, to compare edited ones with.

    - `logits`: of a row.
    - `valid`: positions that count; None for one distribution per input.
    - `ids`: the input's own tokens where the output predicts the next one, else None.

    `loss` is the mean cross-entropy of the next token in nats, None where none is predicted.
    """

    def __init__(
        self,
        logits: Float[Tensor, "*tokens words"],
        valid: Bool[Tensor, " tokens"] | None,
        ids: Int[Tensor, " tokens"] | None,
    ) -> None:
        self._valid = valid
        self._ids, self._followed = None, valid
        if ids is not None and valid is not None:
            self._followed = valid.clone()
            self._followed[:-1] &= valid[1:]
            self._followed[-1] = False
            self._ids = ids.roll(-1)
        self._counted = None if valid is None or bool(valid.all()) else valid
        self._log = self._log_probabilities(logits)
        self._probabilities = self._log.exp()
        impossible = self._log == -torch.inf
        self._impossible = impossible if bool(impossible.any()) else None
        self._top = self._log.argmax(-1)
        self.loss = self._loss_of(self._log)

    def change(self, logits: Float[Tensor, "*tokens words"]) -> OutputChange:
        """How the output of an edited row differs."""
        log = self._log_probabilities(logits)
        loss = self._loss_of(log)
        top1 = float((log.argmax(-1) == self._top).double().mean())
        divergence = torch.sub(self._log, log, out=log).mul_(self._probabilities)
        if self._impossible is not None:
            divergence.masked_fill_(self._impossible, 0)
        return OutputChange(
            kl=max(0.0, float(divergence.sum(-1).double().mean())),  # below 0 by rounding only
            top1=top1,
            loss=None if loss is None or self.loss is None else loss - self.loss,
        )

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        counted = logits if self._counted is None else logits[self._counted]
        return counted.to(torch.promote_types(counted.dtype, torch.float32)).log_softmax(-1)

    def _loss_of(self, log: Tensor) -> float | None:
        if self._ids is None or self._followed is None or not bool(self._followed.any()):
            return None
        assert self._valid is not None
        next_token = log.gather(-1, self._ids[self._valid, None])
        return -float(next_token[self._followed[self._valid]].double().mean())
