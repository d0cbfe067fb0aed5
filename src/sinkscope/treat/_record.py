"""What was done to a model, and how it is undone. The record is an attribute of the model: copies have it too."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn
from torch.utils.hooks import RemovableHandle

from sinkscope._errors import OptionError
from sinkscope.models._model import TREATED
from sinkscope.treat._treatment import Treatment


class Step(Protocol):
    """One change of a model."""

    def undo(self) -> None:
        """Takes it back."""
        ...


@dataclass(frozen=True)
class AddedModule:
    """A module that was not there before."""

    parent: nn.Module
    name: str

    def undo(self) -> None:
        delattr(self.parent, self.name)

    @property
    def module(self) -> nn.Module:
        """The module."""
        return self.parent.get_submodule(self.name)


@dataclass(frozen=True)
class Hook:
    """A hook that was not there before."""

    handle: RemovableHandle

    def undo(self) -> None:
        self.handle.remove()


@dataclass(frozen=True)
class Attribute:
    """An attribute that has another value now; `__class__` is one."""

    owner: Any
    name: str
    before: Any

    def undo(self) -> None:
        setattr(self.owner, self.name, self.before)


@dataclass
class Record:
    """All of them, in order, the treatments they belong to, and the notes that tell of these."""

    treatments: list[Treatment] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def undo(self, kept: int = 0) -> None:
        """Takes back all steps but the first `kept`, the last one first."""
        while len(self.steps) > kept:
            self.steps.pop().undo()


def find_record(model: nn.Module) -> Record | None:
    """The record of a model; None when it is not treated."""
    return getattr(model, TREATED, None)


def require_record(model: nn.Module) -> Record:
    """The record of a treated model.

    **Raises:** `OptionError` when it is not treated, naming the part that is, if there is one.
    """
    record = find_record(model)
    if record is None:
        inner = next((name for name, module in model.named_modules() if find_record(module) is not None), None)
        found = "is not treated" if inner is None else f"is not treated, but its part {inner} is"
        raise OptionError(f"{type(model).__name__} {found}", "the model that treat returned", "pass that one")
    return record


def make_record(model: nn.Module) -> Record:
    """The record of a model, a new one if it has none."""
    record = find_record(model)
    if record is None:
        record = Record()
        setattr(model, TREATED, record)
    return record


def drop_record(model: nn.Module) -> None:
    """Forgets an empty record."""
    delattr(model, TREATED)
