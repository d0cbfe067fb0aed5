"""Other attention forms in place of the softmax of a pretrained model, by conversion."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from sinkscope import attention
from sinkscope._errors import OptionError
from sinkscope.attention import Attend, Parameters
from sinkscope.treat._anatomy import Site
from sinkscope.treat._container import Part
from sinkscope.treat._treatment import AttentionTreatment


@dataclass(frozen=True)
class Conversion(AttentionTreatment):
    """Replaces the softmax, with nothing that keeps the outputs."""

    @property
    def slot(self) -> str:
        return "form"

    @property
    def harmless(self) -> bool:
        return False

    @property
    @abstractmethod
    def replacement(self) -> attention.Form:
        """The form that takes the softmax's place."""

    def part(self, site: Site) -> Part:
        return _FormPart(self.replacement, site)


@dataclass(frozen=True)
class OffByOne(Conversion):
    """Softmax with one more in its denominator. It changes the outputs from the start: by little where the scores of a
    row add up to much, by much where all of them are low."""

    name: ClassVar[str] = "off-by-one"
    source: ClassVar[str] = "Miller 2023, Attention Is Off By One"

    @property
    def replacement(self) -> attention.Form:
        return attention.OffByOne()


@dataclass(frozen=True)
class ClippedSoftmax(Conversion):
    """Softmax stretched to [gamma, zeta] and clipped to [0, 1]. It changes the outputs from the start, unless zeta is 1
    and gamma 0.

    - `zeta`, `alpha`, `gamma`: as in `sinkscope.attention.ClippedSoftmax`.

    **Raises:** `OptionError` for values outside its ranges.
    """

    zeta: float = 1.0
    alpha: float = 3.0
    gamma: float | None = None

    name: ClassVar[str] = "clipped-softmax"
    source: ClassVar[str] = "Bondarenko et al. 2023, arXiv:2306.12929"

    def __post_init__(self) -> None:
        _ = self.replacement  # checks the values

    @property
    def harmless(self) -> bool:
        return self.zeta == 1 and (self.alpha if self.gamma is None else self.gamma) == 0

    @property
    def replacement(self) -> attention.Form:
        return attention.ClippedSoftmax(self.zeta, self.alpha, self.gamma)


@dataclass(frozen=True, init=False)
class Form(Conversion):
    """Any form of `sinkscope.attention`, by name: `Form("softpick")`, `Form("polynomial", p=3)`.

    What it learns starts as it does there, gates half open for instance. All but `softmax` are taken to change the
    outputs from the start; for a start that does not, see `Gate`, `LearnedSink`, `AttentionBias` and `KeyBias`.

    - `form`: one of `sinkscope.attention.names()`, except those that change projections or act behind the output
      projection (`goat`, `global-pathway`, `gate-projection`).
    - `options`: of the form, given by name.

    **Raises:** `OptionError` for forms and options that do not exist, and for forms that are no replacement.
    """

    form: str
    options: tuple[tuple[str, Any], ...]

    name: ClassVar[str] = "form"
    source: ClassVar[str] = "the form's own"

    def __init__(self, form: str, *, layers: tuple[int, ...] | None = None, **options: Any) -> None:
        object.__setattr__(self, "layers", layers)
        object.__setattr__(self, "form", form)
        object.__setattr__(self, "options", tuple(sorted(options.items())))
        made = self.replacement
        if type(made).after is not attention.Form.after or made.key_dim(64) != 64:
            raise OptionError(
                f"form: {form} does more than replace the softmax",
                "a form with the same projections, and nothing behind the last of them",
                "take GlobalPathway() or Gate() of sinkscope.treat, or train with sinkscope.attention.Attention",
            )

    @property
    def harmless(self) -> bool:
        return self.form == "softmax"

    @property
    def replacement(self) -> attention.Form:
        return attention.get(self.form, **dict(self.options))

    def plain(self) -> dict[str, Any]:
        return {"name": self.name, "form": self.form, "layers": self.layers, **dict(self.options)}


class _FormPart(Part):
    def __init__(self, form: attention.Form, site: Site) -> None:
        super().__init__()
        self.form = form
        self.learned = nn.ParameterDict(form.parameters(site.shape))

    def core(self, call: Attend, x: Float[Tensor, "batch queries residual"]) -> tuple[attention.Form, Parameters]:
        learned = dict(self.learned.items())
        given = learned | self.form.context(x, learned)
        of_keys = any("keys" in axes.replace("#", "").split() for axes in self.form.needs.values())
        if of_keys and call.k.shape[2] != x.shape[1]:
            raise OptionError(
                f"{self.form.card.name} with {x.shape[1]} inputs and {call.k.shape[2]} keys",
                "the input of every key, which a key-value cache does not keep",
                "pass use_cache=False",
            )
        return self.form, {name: given[name] for name in self.form.needs}
