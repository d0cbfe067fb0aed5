"""Learned keys and values beside those of the tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from sinkscope.attention import Attend, Form, KeyBias as KeyBiasForm, KVBias, Parameters
from sinkscope.treat._anatomy import Site
from sinkscope.treat._column import ColumnPart, ColumnWeight
from sinkscope.treat._container import Part
from sinkscope.treat._treatment import AttentionTreatment


@dataclass(frozen=True)
class _Bias(AttentionTreatment):
    """One more column of the softmax."""

    weighed: bool = True

    @property
    def harmless(self) -> bool:
        return self.weighed

    @property
    def needs_probe(self) -> bool:
        return self.weighed

    @property
    def slot(self) -> str:
        return "form"


@dataclass(frozen=True)
class AttentionBias(_Bias):
    """A learned key k' and value v' per key-value head: o = softmax([S, scale q.k' + b]) [V; v'].

    k' and v' start in a normal distribution of standard deviation 0.02.

    - `weighed`: with b, a learned logit per head that starts 16 below the smallest log-normaliser of the head's rows on
      a probe, which is needed: outputs stay within 1e-5 until it is tuned. False is the published form without b: the
      column's scores are near 0 from the start, which changes the outputs.
    """

    name: ClassVar[str] = "attention-bias"
    source: ClassVar[str] = "Sun et al. 2024, arXiv:2402.17762"

    def part(self, site: Site) -> Part:
        return _BiasPart(_WeighedKVBias() if self.weighed else KVBias(), site)


@dataclass(frozen=True)
class KeyBias(_Bias):
    """A learned key k' per key-value head, whose value is zero: softmax([S, scale q.k' + b]) without its last column.

    k' starts in a normal distribution of standard deviation 0.02.

    - `weighed`: with b, a learned logit per head that starts 16 below the smallest log-normaliser of the head's rows on
      a probe, which is needed: outputs stay within 1e-5 until it is tuned. False is the published form without b: the
      column's scores are near 0 from the start, which changes the outputs.
    """

    name: ClassVar[str] = "key-bias"
    source: ClassVar[str] = "Gu et al. 2025, arXiv:2410.10781"

    def part(self, site: Site) -> Part:
        return _BiasPart(_WeighedKeyBias() if self.weighed else KeyBiasForm(), site)


class _BiasPart(ColumnPart):
    def __init__(self, form: KeyBiasForm, site: Site) -> None:
        super().__init__()
        self.form = form
        self.learned = nn.ParameterDict(form.parameters(site.shape))
        self.column = ColumnWeight(site.shape.heads) if "weight" in form.needs else None

    def core(self, call: Attend, x: Float[Tensor, "batch queries residual"]) -> tuple[Form, Parameters]:
        given = dict(self.learned.items())
        return self.form, given if self.column is None else {**given, "weight": self.column.logit()}


class _Weighed(KeyBiasForm):
    """Adds the parameter `weight` to the column's scores."""

    @property
    def needs(self) -> Mapping[str, str]:
        return {**super().needs, "weight": "heads"}

    def _logit(self, call: Attend) -> Float[Tensor, "batch heads queries"]:
        return super()._logit(call) + call.parameters["weight"].to(call.dtype)[None, :, None]


@dataclass(frozen=True)
class _WeighedKeyBias(_Weighed):
    """Key bias with a logit of its own."""


@dataclass(frozen=True)
class _WeighedKVBias(_Weighed, KVBias):
    """Key-value bias with a logit of its own."""
