"""RMSNorm of head outputs in a pretrained model, mixed in from nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sinkscope._errors import OptionError
from sinkscope.treat._anatomy import Site
from sinkscope.treat._container import Part
from sinkscope.treat._finish import Norm
from sinkscope.treat._treatment import AttentionTreatment


@dataclass(frozen=True)
class HeadNorm(AttentionTreatment):
    """Head outputs divided by their root mean square, in front of the output projection.

    No gain can make this norm the identity, since it takes away a length that differs from token to token. Two starts:

    - `mixed`: True for o + mix (o / RMS(o) gain - o) with a learned mix per head that starts at 0: the outputs are what
      they were, and the gradient of mix is not zero. False for the norm alone as published: it changes the outputs from
      the start.
    - `eps`: keeps the root from zero.

    The gain, shared by the heads of a layer, starts at 1.

    **Raises:** `OptionError` when `eps` is no positive number.
    """

    mixed: bool = True
    eps: float = 1e-6

    name: ClassVar[str] = "head-norm"
    source: ClassVar[str] = "Li et al. 2026, arXiv:2605.06611"

    def __post_init__(self) -> None:
        if not self.eps > 0:
            raise OptionError(f"head-norm: eps is {self.eps!r}", "a number above 0", "correct eps")

    @property
    def harmless(self) -> bool:
        return self.mixed

    @property
    def slot(self) -> str:
        return "norm"

    def part(self, site: Site) -> Part:
        return _HeadNorm(self, site)


class _HeadNorm(Part):
    def __init__(self, options: HeadNorm, site: Site) -> None:
        super().__init__()
        self.eps = options.eps
        self.gain = nn.Parameter(torch.ones(site.shape.head_dim))
        self.mix = nn.Parameter(torch.zeros(site.shape.heads)) if options.mixed else None

    def finish(self, x: Float[Tensor, "batch queries residual"]) -> Norm:
        return Norm(self.gain, self.mix, self.eps)
