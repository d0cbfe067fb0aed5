"""What an edit changes in the final tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class FinalChange:
    """`final`, `final_norm`, `common` and the mean change of the recipients; see EDIT_COLUMNS."""

    final: float
    final_norm: float | None
    common: float | None
    change: Float[Tensor, " residual"]


class FinalTokens:
    """The final tokens of one pass beside those of the unedited one."""

    def __init__(
        self,
        valid: Bool[Tensor, "rows tokens"],
        before: Float[Tensor, "rows tokens residual"],
        after: Float[Tensor, "rows tokens residual"],
        before_norm: Float[Tensor, "rows tokens normed"] | None,
        after_norm: Float[Tensor, "rows tokens normed"] | None,
    ) -> None:
        dtype = torch.promote_types(before.dtype, torch.float32)
        difference = after.to(dtype) - before.to(dtype)
        self._final = _energies(difference, before.to(dtype))
        self._final_norm: tuple[Tensor, Tensor] | None = None
        if before_norm is not None and after_norm is not None:
            difference = after_norm.to(dtype) - before_norm.to(dtype)
            self._final_norm = _energies(difference, before_norm.to(dtype))
        self._difference = difference
        self._valid = valid.to(before.device)
        self.finite = bool(torch.isfinite(self._final[0][self._valid]).all())

    def largest(self, rows: Sequence[int]) -> float:
        """The largest relative change of these rows, root mean square over their valid tokens of the relative changes,
        so that a token of large norm hides nothing; infinite where one is not finite."""
        changed, whole = (energy[list(rows)] for energy in self._final)
        ratios = (changed / whole.clamp(min=1e-30)).masked_fill(~self._valid[list(rows)], 0)
        mean = ratios.sum(1) / self._valid[list(rows)].sum(1)
        return float(mean.sqrt().max().nan_to_num(nan=torch.inf))

    def of(self, row: int, counted: Bool[Tensor, " tokens"], recipients: Bool[Tensor, " tokens"]) -> FinalChange:
        """What changed in a row, over the tokens that count and, for the common part, over the recipients."""
        counted, recipients = counted.to(self._valid.device), recipients.to(self._valid.device)
        energies = (self._final if self._final_norm is None else self._final_norm)[0][row]
        n, energy = int(recipients.sum()), float(energies[recipients].sum())
        mean = self._difference[row][recipients].mean(0) if n else torch.zeros_like(self._difference[row, 0])
        return FinalChange(
            final=_relative(self._final, row, counted),
            final_norm=None if self._final_norm is None else _relative(self._final_norm, row, counted),
            common=n * float(mean.double().square().sum()) / energy if energy > 0 else None,
            change=mean.float(),
        )


def tokens_of(x: Tensor, rows: int, tokens: int, axis: int) -> Float[Tensor, "rows tokens width"] | None:
    """Hidden states whose axis `axis` holds `rows` sequences, None where they are not those of so many tokens."""
    if x.dim() > 3 and axis == 0:
        x = x.flatten(1, -2)  # tokens on a grid
    x = x if axis == 0 else x.transpose(0, 1)
    return x if x.dim() == 3 and x.shape[:2] == (rows, tokens) else None


def _energies(difference: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """|d_i|^2 and |P_i|^2 of every token, in float64."""
    return difference.square().sum(-1).double(), before.square().sum(-1).double()


def _relative(energies: tuple[Tensor, Tensor], row: int, counted: Tensor) -> float:
    changed, whole = (float(energy[row][counted].sum()) for energy in energies)
    return (changed / whole) ** 0.5 if whole > 0 else 0.0
