"""How much an extra column of the softmax weighs: nothing at the start, and yet it can learn."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sinkscope.attention import Attend
from sinkscope.treat._container import Part

START = 3e-4
_SMALLEST = 1e-12


class ColumnWeight(nn.Module):
    """Logits b of a column, one per head: exp(b) = exp(unit) (exp(w^2) - 1) with w learned.

    A logit that is learned itself has no start that is both harmless and alive: the column's weight is sigmoid(b - L)
    with L the log-normaliser of the row, and the gradient of b has that weight as its factor. The gradient of w has
    2 w exp(unit - L) in its place. With w = 3e-4 at the start the column gets a share of 1e-7 exp(unit - L), about
    what float32 resolves where L is the unit or more, while the factor of the gradient is some 6,000 times larger.
    b grows like 2 log w for small w and like w^2 for large ones, so no logit is out of reach.

    The unit is the smallest L of the head on the probe: in trained models rows are found whose scores are all far below
    zero (L was -14 in SmolLM2-135M, -17 in a DINOv2-S), for which no constant is small enough.

    - `root`: w; its sign has no meaning.
    - `unit`: 0 until `settle` has been called.
    """

    unit: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.root = nn.Parameter(torch.full((heads,), START))
        self.register_buffer("unit", torch.zeros(heads))
        self._smallest: Tensor | None = None

    def logit(self) -> Float[Tensor, " heads"]:
        """b, in float32 or better."""
        square = self.root.to(torch.promote_types(self.root.dtype, torch.float32)).square()
        return self.unit + square + torch.log(_SMALLEST - torch.expm1(-square))

    def observe(self, call: Attend) -> None:
        """Takes note of the log-normalisers of one call."""
        shown = call.visible()
        norm = call.scores().masked_fill(~shown, -torch.inf).logsumexp(-1)
        smallest = norm.masked_fill(~shown.any(-1), torch.inf).amin((0, 2))
        self._smallest = smallest if self._smallest is None else torch.minimum(self._smallest, smallest)

    def settle(self) -> None:
        """Makes the smallest of them the unit."""
        if self._smallest is not None:
            with torch.no_grad():
                self.unit.copy_(self._smallest)
        self._smallest = None


class ColumnPart(Part):
    """A part with one more column, weighed or not."""

    column: ColumnWeight | None

    def observe(self, call: Attend) -> None:
        if self.column is not None:
            self.column.observe(call)

    def settle(self) -> None:
        if self.column is not None:
            self.column.settle()
