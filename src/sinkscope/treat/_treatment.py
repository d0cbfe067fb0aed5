"""What a treatment is: options, and how they are put into a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

from sinkscope._errors import OptionError
from sinkscope.treat._anatomy import Anatomy, Site
from sinkscope.treat._container import Part

if TYPE_CHECKING:
    from sinkscope.treat._body import Body


@dataclass(frozen=True)
class Treatment(ABC):
    """A change of a model. Subclasses are frozen dataclasses whose fields are plain data: numbers, words, tuples."""

    name: ClassVar[str]
    """By which saved treatments and the command line find it."""

    source: ClassVar[str]
    """Paper and equation."""

    @property
    @abstractmethod
    def harmless(self) -> bool:
        """Whether the outputs of the model are unchanged until something is tuned."""

    @property
    def needs_probe(self) -> bool:
        """Whether its starting values depend on the model, so that an input has to be run. No by default."""
        return False

    def __str__(self) -> str:
        """As code, without options that have their default."""
        told = [
            f"{each.name}={getattr(self, each.name)!r}"
            for each in fields(self)
            if getattr(self, each.name) != each.default
        ]
        return f"{type(self).__name__}({', '.join(told)})"

    def plain(self) -> dict[str, Any]:
        """The name and the options, as JSON takes them; the class makes the treatment again from the options."""
        return {"name": self.name, **{each.name: getattr(self, each.name) for each in fields(self)}}

    @abstractmethod
    def install(self, body: Body) -> None:
        """Makes the change.

        **Raises:** `OptionError` where the model cannot have it; what was changed is then taken back by the caller.
        """


@dataclass(frozen=True)
class AttentionTreatment(Treatment):
    """A change inside attention modules.

    - `layers`: indices of the blocks, all by default.
    """

    layers: tuple[int, ...] | None = field(default=None, kw_only=True)

    @property
    @abstractmethod
    def slot(self) -> str:
        """Where in attention it acts, one of `ORDER`; one treatment per slot and attention."""

    @abstractmethod
    def part(self, site: Site) -> Part:
        """What is put into one attention."""

    def install(self, body: Body) -> None:
        for site in self.sites(body.anatomy):
            body.put(self, site, self.part(site))

    def sites(self, anatomy: Anatomy) -> tuple[Site, ...]:
        """The attention modules it is for.

        **Raises:** `OptionError` for layers that the model does not have.
        """
        if self.layers is None:
            return anatomy.sites
        count = len(anatomy.sites)
        wrong = [layer for layer in self.layers if not 0 <= layer < count]
        if wrong or not self.layers:
            raise OptionError(
                f"{self.name} for layers {', '.join(map(str, wrong)) or 'none'}",
                f"some of 0 to {count - 1}",
                "correct layers, or leave it out for all",
            )
        return tuple(anatomy.sites[layer] for layer in sorted(set(self.layers)))
